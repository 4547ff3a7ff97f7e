"""Tests of image folders: layouts, names, held-out images, and errors."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.folders import list_folder
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError


def write(path: pathlib.Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def fill(root: pathlib.Path, classes: str = "ab", count: int = 3, first: int = 0):
    for label, name in enumerate(classes):
        for k in range(first, first + count):
            write(root / name / f"{k}.png", 10 * label)


def names(root: pathlib.Path, split: str) -> set[str]:
    source = open_dataset(str(root)).split(split)
    return {os.path.relpath(source[i].name, root) for i in range(len(source))}


@pytest.mark.parametrize("evaluation", ["val", "valid", "validation", "test"])
def test_train_and_evaluation_folders(tmp_path, evaluation):
    fill(tmp_path / "train", "cab")
    fill(tmp_path / evaluation, "ba", 2)
    dataset = open_dataset(str(tmp_path))
    info = dataset.info.with_splits()
    assert (info.train_split, info.eval_split) == ("train", evaluation)
    assert info.num_examples == {"train": 9, evaluation: 4}
    assert not info.held_out
    assert info.class_names == ("a", "b", "c")
    source = dataset.split(evaluation)
    labels = {source[i].name: source[i].label for i in range(4)}
    assert labels == {
        str(tmp_path / evaluation / name / f"{k}.png"): label
        for label, name in enumerate("ab")
        for k in range(2)
    }
    assert decode(source[0].image).shape == (4, 4, 3)


def test_split_folders_may_be_capitalised(tmp_path):
    fill(tmp_path / "Train", "ab")
    fill(tmp_path / "VAL", "ab", 2)
    info = open_dataset(str(tmp_path)).info.with_splits()
    assert info.num_examples == {"train": 6, "val": 4}
    assert info.class_names == ("a", "b")
    assert "Train/a/0.png" in names(tmp_path, "train")


def test_folders_of_splits_are_never_classes(tmp_path):
    write(tmp_path / "train/0.png")
    write(tmp_path / "val/0.png")
    with pytest.raises(
        UserError, match=r"/train; found .* 1 image\(s\) outside the folders"
    ):
        list_folder(str(tmp_path))


def test_folder_without_training_images_can_be_evaluated(tmp_path):
    fill(tmp_path / "val", "ab", 4)
    fill(tmp_path / "test", "ab", 1)
    dataset = open_dataset(str(tmp_path))
    assert (dataset.info.train_split, dataset.info.eval_split) == ("", "val")
    assert dataset.whole == "val"
    assert len(dataset.split()) == 8
    with pytest.raises(UserError, match=r"nothing to train on, only val, test: put"):
        dataset.info.with_splits()
    assert dataset.info.with_splits("val").num_examples == {"val": 8}


def test_undivided_folder_can_be_evaluated_whole(tmp_path):
    fill(tmp_path, "ab", 10)
    dataset = open_dataset(str(tmp_path))
    assert dataset.whole == "train+val"
    assert len(dataset.split("train+val")) == 20
    fill(tmp_path / "other/train", "ab")
    fill(tmp_path / "other/test", "ab")
    assert open_dataset(str(tmp_path / "other")).whole == "test"


def test_folders_without_images_are_logged(tmp_path, caplog):
    fill(tmp_path, "ab")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/0.mov").write_bytes(b"x")
    dataset = open_dataset(str(tmp_path))
    assert dataset.info.class_names == ("a", "b")
    assert dataset.split("train").class_names == ("a", "b")
    assert caplog.messages == [
        f"{tmp_path}: {line}"
        for line in (
            f"folders without images in {tmp_path}, left out: 'c'",
            "there is no folder for evaluation: 2 of 6 images are held out for it "
            "(data.hold_out=0.1)",
            "left out: 1 × .mov",
        )
    ]


def test_val_is_preferred_to_test(tmp_path):
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        fill(tmp_path / split, count=count)
    info = open_dataset(str(tmp_path)).info
    assert info.with_splits().num_examples == {"train": 8, "val": 6}
    assert info.with_splits("train+val", "test").num_examples == {
        "train+val": 14,
        "test": 4,
    }


def test_extensions_of_images_in_any_case(tmp_path):
    endings = "jpg JPG jpeg JpEg png PNG webp WebP bmp BMP gif GIF tif TIF tiff TIFF"
    for k, ending in enumerate(endings.split()):
        write(tmp_path / "train" / "ab"[k % 2] / f"{k}.{ending}")
    fill(tmp_path / "val")
    folder = tmp_path / "train" / "a"
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.jpg").write_bytes(b"x")
    write(tmp_path / "train" / ".cache" / "x.png")
    (tmp_path / "train" / "empty").mkdir()
    write(folder / "deeper" / "still" / "one.png")
    info = open_dataset(str(tmp_path)).info.with_splits()
    assert info.num_examples["train"] == 16 + 1
    assert info.class_names == ("a", "b")
    source = open_dataset(str(tmp_path)).split()
    assert {decode(source[i].image).shape for i in range(17)} == {(4, 4, 3)}


def test_one_folder_holds_out_a_tenth_of_each_class(tmp_path):
    fill(tmp_path, "ab", 150)
    info = open_dataset(str(tmp_path)).info
    assert info.held_out
    assert info.with_splits().held_out
    assert not info.with_splits("train[:50%]", "train[50%:]").held_out
    listing = list_folder(str(tmp_path))
    assert (listing.train_split, listing.eval_split) == ("train", "val")
    labels = [label for _, label in listing.files["val"]]
    assert 6 <= labels.count(0) <= 26
    assert 6 <= labels.count(1) <= 26
    assert sum(listing.num_examples.values()) == 300
    assert not names(tmp_path, "train") & names(tmp_path, "val")


def test_new_images_do_not_move_others(tmp_path):
    fill(tmp_path, "ab", 40)
    train, val = names(tmp_path, "train"), names(tmp_path, "val")
    fill(tmp_path, "abc", 60, first=40)
    assert train < names(tmp_path, "train")
    assert val < names(tmp_path, "val")
    (tmp_path / "a" / "0.png").unlink()
    gone = {os.path.join("a", "0.png")}
    assert train - gone < names(tmp_path, "train")
    assert val - gone < names(tmp_path, "val")


def test_held_out_images_do_not_depend_on_the_location(tmp_path):
    for place in ("here", "there"):
        fill(tmp_path / place, "ab", 40)
    assert names(tmp_path / "here", "val") == names(tmp_path / "there", "val")


def test_train_alone_is_divided(tmp_path):
    fill(tmp_path / "train", "ab", 50)
    counts = open_dataset(str(tmp_path)).info.with_splits().num_examples
    assert sum(counts.values()) == 100
    assert 2 <= counts["val"] <= 20


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tiny_folders_keep_images_on_both_sides(tmp_path, count):
    for attempt in range(12):
        root = tmp_path / str(attempt)
        fill(root, "abc", 2, first=attempt)
        fill(root, "de", count, first=attempt)
        listing = list_folder(str(root))
        assert {label for _, label in listing.files["train"]} == {0, 1, 2, 3, 4}
        assert len(listing.files["val"]) > 0


def test_a_slice_is_a_fair_sample(tmp_path):
    fill(tmp_path / "train", "ab", 100)
    fill(tmp_path / "val", "ab", 5)
    for split, size in (("train[:30%]", 60), ("train[140:]", 60)):
        source = open_dataset(str(tmp_path)).split(split)
        assert len(source) == size
        labels = [source[i].label for i in range(size)]
        assert 15 <= sum(labels) <= 45
    first, rest = names(tmp_path, "train[:30%]"), names(tmp_path, "train[30%:]")
    assert len(first | rest) == 200
    assert not first & rest


def test_class_named_train(tmp_path):
    fill(tmp_path, ["bus", "train", "test"], 20)
    assert open_dataset(str(tmp_path)).info.class_names == ("bus", "test", "train")


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "set" / "train", "ab", 20)
    fill(tmp_path / "elsewhere", "c", 20)
    (tmp_path / "set" / "train" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (tmp_path / "set" / "train" / "a" / "loop").symlink_to(tmp_path / "set")
    info = open_dataset(str(tmp_path / "set")).info.with_splits()
    assert info.class_names == ("a", "b", "c")
    assert sum(info.num_examples.values()) == 60


def test_a_link_to_the_data_set_is_not_a_class(tmp_path):
    fill(tmp_path, "ab", 20)
    (tmp_path / "c").symlink_to(".")
    (tmp_path / "d").symlink_to(tmp_path.parent)
    listing = list_folder(str(tmp_path))
    assert listing.class_names == ("a", "b")
    assert listing.left_out == {"links to a folder that contains them": 2}


def test_a_large_folder_is_listed_quickly(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(300):
            (tmp_path / name / f"{k}.jpg").touch()

    asked = []
    stat = os.stat

    def counted(path, **options):
        asked.append(path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counted)
        listing = list_folder(str(tmp_path))
    assert sum(listing.num_examples.values()) == 600
    assert len(asked) < 20  # once per folder, not once per file


def test_errors_describe_the_folder(tmp_path):
    def message(path) -> str:
        with pytest.raises(UserError) as error:
            open_dataset(str(path)).info.with_splits()
        return str(error.value)

    layout = "Expected one folder per class"
    found = message(tmp_path / "gone")
    assert f"there is no folder {tmp_path / 'gone'}" in found
    assert layout in found
    (tmp_path / "file").write_text("x")
    assert "is a file, not a folder, nor a table" in message(tmp_path / "file")
    for name in ("x.zip", "x.TAR.gz"):
        (tmp_path / name).touch()
        assert "not a folder. Unpack it, and name" in message(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "no images of any class" in message(tmp_path / "empty")
    assert "found 0 folder(s). Expected" in message(tmp_path / "empty")
    for name in ("train.zip", "val.zip", ".x"):
        (tmp_path / "empty" / name).touch()
    found = message(tmp_path / "empty")
    assert "found 0 folder(s), with 2 × .zip, 1 × hidden. Expected" in found
    write(tmp_path / "loose" / "1.png")
    assert "1 image(s) outside the folders of classes" in message(tmp_path / "loose")
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "x.MOV").touch()
    assert "found 1 folder(s) ('a'), with 1 × .mov" in message(tmp_path / "other")
    fill(tmp_path / "single", "a")
    assert "found one class ('a')" in message(tmp_path / "single")
    fill(tmp_path / "strange" / "train", "ab")
    fill(tmp_path / "strange" / "val", "abx")
    found = message(tmp_path / "strange")
    assert "strange/val has classes that" in found
    assert "'x'. Classes to train on: 'a', 'b'." in found
    fill(tmp_path / "two", "ab", 1)
    assert "too few to hold one out" in message(tmp_path / "two")


def test_folders_named_by_numbers_are_ordered_by_value(tmp_path):
    fill(tmp_path, list(map(str, range(12))), 2)
    info = open_dataset(str(tmp_path)).info
    assert info.class_names == tuple(map(str, range(12)))
    # Runs begun with the first rules keep their order, which was that of text.
    info = open_dataset(str(tmp_path), "", DataOptions(rules=1)).info
    assert info.class_names == ("0", "1", "10", "11", *map(str, range(2, 10)))
    fill(tmp_path, ["x"], 2)  # not all are numbers
    info = open_dataset(str(tmp_path)).info
    assert info.class_names[:4] == ("0", "1", "10", "11")


def test_accents_are_the_same_in_every_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill(tmp_path / "train", [composed, "a"])
    fill(tmp_path / "val", [decomposed, "a"], 2)
    dataset = open_dataset(str(tmp_path))
    assert dataset.info.class_names == ("a", composed)
    source = dataset.split("val")
    labels = {source[i].name: source[i].label for i in range(4)}
    assert labels[str(tmp_path / "val" / decomposed / "0.png")] == 1


def test_left_out_files_are_counted_by_reason(tmp_path, caplog):
    fill(tmp_path / "train", "ab", 4)
    fill(tmp_path / "val", "ab", 2)
    for name in (
        "train/a/1.xyz",
        "train/a/2.XYZ",
        "val/b/.x.png",
        "val/b/@eaDir/a.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write(tmp_path / "overview.png")
    write(tmp_path / "train" / "all.png")
    (tmp_path / "README.md").touch()
    listing = list_folder(str(tmp_path))
    assert listing.num_examples == {"train": 8, "val": 4}
    assert listing.left_out == {
        ".xyz": 2,
        "hidden": 1,
        "thumbnails and files of file servers and systems": 1,
        "images outside the folders of classes": 2,
        ".md": 1,
    }
    _ = open_dataset(str(tmp_path)).contents
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}: left out: 2 × ")


def test_archives_beside_the_images_are_named(tmp_path, caplog):
    fill(tmp_path / "train", "ab", 20)
    for name in ("val.zip", "ILSVRC2012_img_val.tar", "test.tar.gz", "notes.txt"):
        (tmp_path / name).touch()
    listing = open_dataset(str(tmp_path)).contents
    assert listing.left_out == {".zip": 1, ".tar": 1, ".gz": 1, ".txt": 1}
    names = "'ILSVRC2012_img_val.tar', 'test.tar.gz', 'val.zip'"
    assert f"archives are not read: {names}. If they hold images" in caplog.text


def test_first_rules_count_thumbnails_as_images(tmp_path):
    fill(tmp_path / "train", "ab", 4)
    fill(tmp_path / "val", "ab", 2)
    write(tmp_path / "train/a/@eaDir/0.png")
    assert list_folder(str(tmp_path)).num_examples["train"] == 8
    options = DataOptions(rules=1)
    assert list_folder(str(tmp_path), options).num_examples["train"] == 9


def test_the_share_to_hold_out_is_an_option(tmp_path, caplog):
    fill(tmp_path, "ab", 40)
    listing = list_folder(str(tmp_path), DataOptions(hold_out=0.5))
    labels = [label for _, label in listing.files["val"]]
    assert 10 <= labels.count(0) <= 30
    assert 10 <= labels.count(1) <= 30
    [remark] = listing.remarks
    assert remark == (
        f"there is no folder for evaluation: {len(labels)} of 80 images are held out "
        "for it (data.hold_out=0.5)"
    )


def test_classes_too_small_to_hold_out_are_named(tmp_path):
    fill(tmp_path, "ab", 20)
    fill(tmp_path, ["owl"], 1)
    remarks = list_folder(str(tmp_path)).remarks
    assert "1 class(es) without a held-out example: 'owl'" in remarks


def test_error_names_a_vanished_file(tmp_path):
    fill(tmp_path, "ab", 20)
    source = open_dataset(str(tmp_path)).split()
    path = pathlib.Path(source[0].name)
    path.unlink()
    with pytest.raises(DecodeError, match=r"png cannot be read: No such file"):
        source[0]
