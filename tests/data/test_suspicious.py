"""Tests of the signs that a data set is not what it seems."""

import io
import logging
import pathlib
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

import vit_jax.data.__main__ as command
from vit_jax.data import suspicious as module
from vit_jax.data.check import check
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.data.suspicious import suspicious, suspicious_at_start


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)


def noise(seed, most=255, dtype=np.uint8, least=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(least, most + 1, (6, 5), dtype)
    pixels[0, :2] = least, most
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two splits of two classes with three different images each."""
    for split in ("train", "val"):
        for name in "ab":
            for number in range(3):
                seed = hash_of(split, name, number)
                write(tmp_path / split / name / f"{number}.png", noise(seed))
    return tmp_path


def hash_of(*parts) -> int:
    return zlib.crc32(repr(parts).encode())


def signs(root, unreadable=None, **options) -> list[str]:
    dataset = open_dataset(str(root), options=DataOptions(**options))
    info = dataset.info
    splits = [split for split in (info.train_split, info.eval_split) if split]
    sources = {split: dataset.split(split) for split in splits}
    white_level = dataset.options.white_level
    others = {
        split: dataset.split(split)
        for split in info.num_examples
        if split not in splits
    }
    return suspicious(sources, info.eval_split, white_level, unreadable, others)


def at_start(root, white_level=0.0) -> list[str]:
    dataset = open_dataset(str(root))
    train, held_out = dataset.split("train"), dataset.split(dataset.info.eval_split)
    return suspicious_at_start(train, held_out, white_level)


def test_ordinary_data_are_not_suspicious(root):
    assert signs(root) == []
    assert at_start(root) == []
    assert signs("digits") == []


def test_split_of_one_image_and_without_a_class(root):
    for path in sorted(root.glob("val/*/*.png"))[1:]:
        path.unlink()
    one = "has one image, so its accuracy is 0 % or 100 %"
    assert signs(root) == [f"val {one}"]
    assert at_start(root) == [f"the split for evaluation {one}"]


def test_class_without_an_image(root):
    for path in (root / "val/a").iterdir():
        path.unlink()
    assert signs(root) == ["val has no image of 1 of 2 classes: 'a'"]
    assert at_start(root) == [
        "the split for evaluation has no image of 1 of 2 classes: 'a'"
    ]


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("Café", unicodedata.normalize("NFD", "Café")), "in Unicode normalisation"),
        (("Cat", "cat"), "in case"),
        (("sea lion", "sealion", "sea  lion"), "in blanks"),
        (("Ｆish", "f ish"), "in case, blanks and Unicode normalisation"),
    ],
)
def test_class_names_that_differ_in_nothing_visible(names, difference):
    listed = ", ".join(ascii(name) for name in names)
    assert [*module._about_names((*names, "other"))] == [
        f"the classes {listed} differ only {difference}"
    ]


def test_class_names_of_folders(tmp_path):
    for name in ("Cat", "cat"):
        for number in range(2):
            write(tmp_path / name / f"{number}.png", noise(hash_of(name, number)))
    expected = "the classes 'Cat', 'cat' differ only in case"
    assert expected in signs(tmp_path)
    assert expected in at_start(tmp_path)


def test_images_of_one_colour(root):
    for number in range(3):
        write(root / "train/a" / f"{number}.png", np.zeros((4, 4 + number), np.uint8))
    (sign,) = signs(root)
    assert sign.startswith("train: 3 of 6 sampled images are completely black: ")
    for path in (root / "train").glob("*/*.png"):
        write(path, np.full((4, 4 + hash_of(str(path)) % 999), 7, np.uint8))
    assert signs(root)[0].startswith("train: 6 of 6 sampled images are of one colour: ")
    assert at_start(root)[0].startswith(
        "the training data: 6 of 6 sampled images are o"
    )


def test_one_even_image_among_many_is_an_exception_for_a_run(root):
    for number in range(20):
        write(root / "train/a" / f"more{number}.png", noise(number))
    source = open_dataset(str(root)).split("train")
    write(pathlib.Path(source[0].name), np.zeros((4, 4), np.uint8))
    assert at_start(root) == []
    (sign,) = signs(root)
    assert sign.startswith("train: 1 of 26 sampled images are completely black: ")
    assert source[0].name in sign


def test_small_part_of_the_range_of_deep_images(root):
    for path in root.glob("*/*/*.png"):
        write(path, noise(hash_of(str(path)), 4095, np.uint16))
    remedy = (
        "has no value above 4095, where white is 65535: 16 of 256 grey levels remain. "
        "If another value is white, set data.white_level, for 12 bits to 4095"
    )
    assert signs(root) == [
        f"{split}: none of 6 sampled images {remedy}" for split in ("train", "val")
    ]
    assert at_start(root) == [f"the training data: none of 6 sampled images {remedy}"]
    assert signs(root, white_level=4095) == []
    assert at_start(root, 4095) == []


def test_few_deep_images_are_not_hidden_by_others(root):
    for path in root.glob("*/*/0.png"):
        write(path, noise(hash_of(str(path)), 16383, np.uint16))  # 14 bits
    remedy = (
        "has no value above 16383, where white is 65535: 64 of 256 grey levels remain. "
        "If another value is white, set data.white_level, for 14 bits to 16383"
    )
    assert at_start(root) == [f"the training data: none of 2 sampled images {remedy}"]
    assert at_start(root, 16383) == []
    for path in root.glob("*/*/0.png"):
        write(path, noise(hash_of(str(path)), 16500, np.uint16))
    assert at_start(root) == []
    (path, *_) = sorted((root / "train").glob("*/0.png"))
    write(path, noise(0, 16383, np.uint16))  # one alone may be dark
    for other in (root / "train").glob("*/0.png"):
        if other != path:
            write(other, noise(1, 255))
    assert at_start(root) == []


def test_small_part_of_the_range_of_eight_bits(root):
    for path in (root / "train").glob("*/*.png"):
        write(path, noise(hash_of(str(path)), 9))
    assert signs(root) == [
        "train: all values of 6 sampled images are between 0 and 9, 3.5% of the range "
        "up to white, which is 255. They may be labels or indices rather than "
        "brightness"
    ]
    for path in (root / "train").glob("*/*.png"):
        write(path, noise(hash_of(str(path)), 240, least=230))
    assert "between 230 and 240" in signs(root)[0]


def test_equal_images_under_two_labels_and_in_two_splits(root):
    def copy(source, target):
        (root / target).write_bytes((root / source).read_bytes())

    copy("train/a/0.png", "train/a/again.png")  # harmless
    assert signs(root) == []
    copy("train/a/0.png", "train/b/other.png")
    copy("train/a/1.png", "val/a/1.png")
    labels, splits = signs(root)
    assert labels.startswith("1 equal images have several labels: ")
    for part in ("train/a/0.png (a, train)", "train/b/other.png (b, train)"):
        assert f"{root}/{part}" in labels
    assert splits == (
        f"1 equal images are in both splits: {root}/train/a/1.png (a, train) = "
        f"{root}/val/a/1.png (a, val)"
    )


def test_equal_images_in_a_split_that_is_not_in_use(root):
    write(root / "test/a/0.png", noise(hash_of("test")))
    assert signs(root) == []
    data = (root / "train/a/0.png").read_bytes()
    (root / "test/a/1.png").write_bytes(data)
    (sign,) = signs(root)
    assert sign.startswith("1 equal images are in several splits: ")
    for part in ("train/a/0.png (a, train)", "test/a/1.png (a, test)"):
        assert f"{root}/{part}" in sign


def test_folders_of_thumbnails(root):
    for place in ("thumbs", "_Thumbnails", "Thumb"):
        write(root / "train/a" / place / "0.png", noise(hash_of(place)))
    write(root / "train/a/thumbs.up/0.png", noise(hash_of("up")))
    (sign,) = signs(root)
    start = "train: 3 of 10 images are in folders of thumbnails: "
    assert sign.startswith(start)
    assert {path.split("/")[-2] for path in sign[len(start) :].split(", ")} == {
        *("thumbs", "_Thumbnails", "Thumb")
    }
    # Where all are, they are the images that are meant.
    write(root / "all/thumbs/x/0.png", noise(1))
    write(root / "all/thumbs/y/0.png", noise(2))
    write(root / "all/thumbs/y/1.png", noise(3))
    assert not any("thumbnails" in one for one in signs(root / "all/thumbs"))


def test_only_files_of_equal_size_are_read(root, monkeypatch):
    read = []
    pieces = module._pieces

    def counted(path):
        read.append(path)
        return pieces(path)

    monkeypatch.setattr(module, "_pieces", counted)
    for number, path in enumerate(sorted(root.glob("*/*/*.png"))):
        path.write_bytes(path.read_bytes() + bytes(1000 * number))
    assert signs(root) == []
    assert read == []
    path.write_bytes(bytes(5) * 2000)
    path.with_name("equal.png").write_bytes(bytes(10_000))
    assert signs(root) == []  # the label and the split are the same
    assert len(read) == 2


def test_limits_are_said(root, monkeypatch):
    data = (root / "train/a/0.png").read_bytes()
    for path in root.glob("*/*/0.png"):
        path.write_bytes(data)
    monkeypatch.setattr(module, "_MOST_FILES", 8)
    (sign,) = signs(root)
    assert "several labels (among 8 of 12 images): " in sign
    monkeypatch.setattr(module, "_MOST_BYTES", 10)
    (sign,) = signs(root)
    assert " (after reading 0.0 GiB, no more): " in sign


def test_equal_pixels_in_arrays(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 4, 4), np.uint8)
    images[3] = images[0]
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    path = tmp_path / "x.npz"
    np.savez(
        path,
        train_images=images[:6],
        train_labels=labels[:6],
        test_images=images[[6, 1]],
        test_labels=labels[[6, 1]],
    )
    found = signs(path)
    assert found[0].startswith("1 equal images have several labels: ")
    assert found[1].startswith("1 equal images are in both splits: ")
    assert "[1] (1, train) = " in found[1]


def test_unreadable_images_are_named(root):
    for path in (root / "train/a").iterdir():
        path.write_bytes(b"x")
    unreadable = []
    assert signs(root, unreadable) == []
    assert len(unreadable) == 3
    assert all("cannot be decoded" in message for message in unreadable)


def test_the_command_prints_them(root, run_command, capsys):
    for path in (root / "val").glob("*/*.png"):
        write(path, np.zeros((3, 3), np.uint8))
    run_command(command, root)  # not a reason for another exit status
    lines = capsys.readouterr().out.splitlines()
    start = "suspicious: val: 6 of 6 sampled images are completely black: "
    assert any(line.startswith(start) for line in lines)
    assert any("suspicious: 1 equal images have several labels" in x for x in lines)


def test_bands_are_sampled_as_they_are(tmp_path):
    import tifffile

    for name in "ab":
        for number in range(3):
            pixels = np.random.default_rng(hash_of(name, number)).integers(
                0, 20_001, (4, 5, 13), np.uint16
            )
            pixels[0, 0, :2] = 0, 20_000
            file = io.BytesIO()
            tifffile.imwrite(
                file, pixels, photometric="minisblack", planarconfig="contig"
            )
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.tif").write_bytes(file.getvalue())
    assert [sign for sign in signs(tmp_path) if "one image" not in sign] == []


def test_warnings_at_the_start_of_a_run(root, caplog):
    from vit_jax.config import default_config
    from vit_jax.train.setup import set_up
    from vit_jax.train.start import open_batches, open_sources

    for path in root.glob("*/*/*.png"):
        write(path, noise(hash_of(str(path)), 4095, np.uint16))
    config = default_config()
    config.dataset = str(root)
    config.image_size, config.model.variant = (8,), "Ti/4"
    config.batch_size, config.total_steps, config.model.channels = 8, 2, 1
    config.augment.train = "resize"
    with caplog.at_level(logging.WARNING):
        open_sources(set_up(config))
    assert any("set data.white_level, for 12 bits" in x for x in caplog.messages)
    caplog.clear()
    config.data.white_level = 4095.0
    setup = set_up(config)
    assert setup.preprocessing.white_level == 4095
    with caplog.at_level(logging.WARNING):
        train, _ = open_sources(setup)
    assert caplog.messages == []
    with open_batches(setup, train, 0) as batches:  # which use all grey levels
        assert next(iter(batches))["image"].max() > 200


def test_the_command_looks_at_all_splits(root):
    for name in "ab":
        write(root / "test" / name / "0.png", noise(hash_of("test", name)))
    data = (root / "train/a/0.png").read_bytes()
    (root / "test/a/1.png").write_bytes(data)
    (root / "test/b/1.png").touch()
    report = check(str(root))
    assert set(report.used) == {"train", "val"}
    [sign] = [line for line in report.remarks if "several splits" in line]
    assert f"{root}/test/a/1.png (a, test)" in sign
    assert report.problems == [
        f"test: 1 of the 4 files looked at are empty: {root}/test/b/1.png"
    ]
    # Images without classes, or of other classes, cannot be opened as a split.
    write(root / "test/x/0.png", noise(1))
    assert not any("several splits" in line for line in check(str(root)).remarks)
