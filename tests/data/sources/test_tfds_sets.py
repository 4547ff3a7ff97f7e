"""Tests of prepared tensorflow-datasets sets, read without TensorFlow."""

import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax import prepare
from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.loading.batches import eval_batches, train_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources import tfds_sets
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.errors import UserError

SETS = str(pathlib.Path(__file__).parents[2] / "fixtures" / "tfds")
DIGITS = f"{SETS}/tiny_digits"


@pytest.mark.parametrize(
    ("dataset", "data_dir"),
    [("tiny_digits", SETS), (DIGITS, ""), (f"{DIGITS}/1.0.0", "")],
)
def test_set_by_name_and_by_folder(dataset, data_dir):
    info = open_dataset(dataset, data_dir).info.with_splits()
    assert info.num_examples == {"train": 16, "test": 8}
    assert (info.num_classes, info.multi_label) == (3, False)
    source = open_dataset(dataset, data_dir).split("test")
    assert source.class_names == ("zero", "one", "two")
    assert len(source) == 8
    example = source[5]
    assert example.name == "tiny_digits/test[5]"
    assert isinstance(example.image, bytes)
    assert decode(example.image).shape == (12, 12, 3)
    assert {source[i].label for i in range(8)} == {0, 1, 2}
    kinds = {
        open_dataset(dataset, data_dir).split("train")[i].image[1:4] for i in range(16)
    }
    assert kinds == {b"PNG", b"\xd8\xff\xe0"}  # PNG and JPEG, still encoded
    assert "tensorflow" not in sys.modules


def test_a_prepared_set_beside_folders_of_classes(tmp_path):
    shutil.copytree(f"{DIGITS}/1.0.0", tmp_path / "1.0.0")
    dataset = open_dataset(str(tmp_path))
    assert (dataset.kind, dataset.about_name) == ("tensorflow-datasets", ())
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(2):
            (tmp_path / name / f"{k}.png").touch()
    dataset = open_dataset(str(tmp_path))
    assert dataset.kind == "tensorflow-datasets"
    [line] = dataset.about_name
    assert line.startswith(f"{tmp_path} has both a set prepared by tensorflow-datasets")
    options = DataOptions(kind="image folder")
    assert open_dataset(str(tmp_path), "", options).info.class_names == ("a", "b")


def test_a_damaged_description_is_explained(tmp_path):
    shutil.copytree(f"{DIGITS}/1.0.0", tmp_path / "1.0.0")
    (tmp_path / "1.0.0" / "dataset_info.json").write_text("{}")
    for use in (
        lambda: open_dataset(str(tmp_path)).contents,
        lambda: tfds_sets.check_prepared(str(tmp_path), ""),
    ):
        with pytest.raises(UserError, match=r"1\.0\.0 cannot be read: .*Prepare it a"):
            use()


def test_slices_are_parts_of_the_split():
    whole = open_dataset(DIGITS).split("train")
    images = [whole[i].image for i in range(16)]
    for split, part in {
        "train[:75%]": slice(0, 12),
        "train[4:]": slice(4, 16),
        "train[-3:]": slice(13, 16),
    }.items():
        source = open_dataset(DIGITS).split(split)
        assert [source[i].image for i in range(len(source))] == images[part]
    assert len(open_dataset(DIGITS).split("train+test[:2]")) == 18
    with pytest.raises(UserError, match=r"splits .*train \(16\)"):
        open_dataset(DIGITS).split("validation")


def test_multiple_labels_become_a_multi_hot_row():
    info = open_dataset("tiny_tags", SETS).info.with_splits()
    assert info.multi_label
    assert info.class_names == ("round", "straight", "even", "odd")
    # The set has one split, so its last tenth is held out.
    assert info.num_examples == {"train[:90%]": 5, "train[90%:]": 1}
    source = open_dataset("tiny_tags", SETS).split("train")
    labels = [source[i].label for i in range(6)]
    assert sorted(labels) == [(), (), (0, 2), (0, 2), (1, 3), (1, 3)]
    batches = eval_batches(source, batch_size=6, preprocessing=Preprocessing((12, 12)))
    with batches:
        batch = next(batches)
    assert batch["label"].dtype == np.float32
    expected = [[float(k in label) for k in range(4)] for label in labels]
    np.testing.assert_array_equal(batch["label"], expected)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        UserError, match=r"no set 'cifar1'; did you mean 'cifar10', 'ci"
    ):
        open_dataset("cifar1").split()
    for path in ("path/to/images", "images.zip", "My Dataset"):
        place = re.escape(os.path.abspath(path))
        with pytest.raises(UserError, match=f"there is no folder or file {place}, and"):
            open_dataset(path).split()
    with pytest.raises(UserError, match=r"'cifar10/nosuch' cannot be opened: .*nosuch"):
        open_dataset("cifar10/nosuch").split()


def test_error_without_random_access_gives_the_command():
    for dataset, data_dir in (
        ("tiny_tfrecord", SETS),
        (f"{SETS}/tiny_tfrecord", ""),
        (f"{SETS}/tiny_tfrecord/1.0.0", ""),
    ):
        with pytest.raises(UserError) as error:
            open_dataset(dataset, data_dir).split()
        found = str(error.value)
        assert "prepared as tfrecord, which has no random access" in found
        assert "pip install 'vit_jax[prepare]'" in found
        assert found.endswith(f"-m vit_jax.prepare tiny_tfrecord --data_dir={SETS}")


def test_several_prepared_sets_in_one_folder_are_listed(tmp_path):
    for version in ("1.0.0", "1.0.1"):
        shutil.copytree(f"{DIGITS}/1.0.0", tmp_path / version)
    with pytest.raises(UserError, match=r"holds 2 prepared sets.*1\.0\.0, .*1\.0\.1"):
        open_dataset(str(tmp_path)).split()


def tensorflow_installed(monkeypatch, answer: bool):
    monkeypatch.setattr(tfds_sets, "tensorflow_is_installed", lambda: answer)


def test_error_of_unprepared_set_gives_both_commands(tmp_path, monkeypatch):
    tensorflow_installed(monkeypatch, False)
    with pytest.raises(UserError) as error:
        open_dataset("cifar10", str(tmp_path)).split()
    lines = str(error.value).splitlines()
    assert str(tmp_path) in lines[0]
    assert lines[1].strip() == "pip install 'vit_jax[prepare]'"
    command = f"python -m vit_jax.prepare cifar10 --data_dir={tmp_path}"
    assert lines[2].strip() == command
    with pytest.raises(UserError) as error:
        prepare.prepare("cifar10", str(tmp_path))
    assert str(error.value).splitlines()[1:] == lines[1:]


def test_an_unprepared_set_is_prepared_in_another_process(tmp_path, monkeypatch):
    # A substitute for the command, which needs TensorFlow: it completes the folder.
    data_dir = tmp_path / "data"
    folder = data_dir / "cifar10" / "3.0.2"
    calls = []

    def run(command, **options):
        calls.append(command)
        shutil.copytree(f"{DIGITS}/1.0.0", folder)
        for file in folder.iterdir():
            file.rename(file.with_name(file.name.replace("tiny_digits", "cifar10")))
        info = folder / "dataset_info.json"
        text = info.read_text().replace("tiny_digits", "cifar10")
        info.write_text(text.replace('"1.0.0"', '"3.0.2"'))
        return subprocess.CompletedProcess(command, 0)

    tensorflow_installed(monkeypatch, True)
    monkeypatch.setattr(tfds_sets.subprocess, "run", run)
    source = open_dataset("cifar10", str(data_dir)).split("test")
    assert len(source) == 8
    arguments = ["-m", "vit_jax.prepare", "cifar10", f"--data_dir={data_dir}"]
    assert calls == [[sys.executable, *arguments]]


def test_failed_preparation_is_an_error(tmp_path, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1)

    tensorflow_installed(monkeypatch, True)
    monkeypatch.setattr(tfds_sets.subprocess, "run", run)
    with pytest.raises(UserError, match=r"could not be prepared \(exit status 1; the"):
        open_dataset("cifar10", str(tmp_path)).split()


def test_command_fails_without_a_traceback():
    outcome = subprocess.run(
        [sys.executable, "-m", "vit_jax.prepare"], capture_output=True, text=True
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: found no dataset, expected at least one")
    assert outcome.stdout == ""


def labelled(write_set, count=12, **options):
    import tensorflow_datasets as tfds

    features = {"label": tfds.features.ClassLabel(names=["a", "b", "c"])}
    rng = np.random.default_rng(0)
    image = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in "12"]
    examples = []
    for k in range(count):
        file = io.BytesIO()
        image[k % 2].save(file, "PNG")
        file.seek(0)
        examples.append({"image": file, "label": k % 3})
    return write_set(features, {"train": examples}, **options)


def test_wrong_checksum_affects_only_its_record(write_set):
    folder = labelled(write_set)
    (shard,) = folder.glob("*array_record*")
    image = open_dataset(str(folder)).split("train")[7].image
    data = bytearray(shard.read_bytes())
    # Every second image is the same.
    places = [data.find(image)]
    while (place := data.find(image, places[-1] + 1)) > 0:
        places.append(place)
    data[places[3] + 100] ^= 1
    shard.write_bytes(data)
    source = open_dataset(str(folder)).split("train[1:]")
    with pytest.raises(DecodeError, match=r"^small/train\[1:\]\[6\] cannot be read: C"):
        source[6]
    assert [source[i].label for i in (5, 7, 0, 10)] == [0, 2, 1, 2]
    # The next example's label replaces it, as its image does.
    assert source.labels().tolist() == [1, 2, 0, 1, 2, 0, 2, 2, 0, 1, 2]


def test_truncated_or_missing_shard_affects_only_its_records(write_set):
    folder = labelled(write_set, shards=2)
    first, second = sorted(folder.glob("*array_record*"))
    for damage in (
        lambda: second.write_bytes(second.read_bytes()[:-40_000]),
        lambda: second.write_bytes(b""),
        second.unlink,
    ):
        damage()
        source = open_dataset(str(folder)).split("train")
        assert len(source) == 12
        assert [source[i].label for i in range(6)] == [0, 2, 1, 0, 2, 1]
        for index in range(6, 12):
            with pytest.raises(DecodeError, match=rf"small/train\[{index}\] cannot be"):
                source[index]
        assert source.labels().tolist() == [0, 2, 1, 0, 2, 1] + [0] * 6
    first.unlink()
    with pytest.raises(UserError, match=r"no example of small/1\.0\.0/train has a"):
        open_dataset(str(folder)).split("train").labels()


def test_missing_records_are_reported(write_set):
    folder = labelled(write_set)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('["12"]', '["14"]'))
    source = open_dataset(str(folder)).split("train")
    assert source[11].label == 2
    with pytest.raises(DecodeError, match=r"small/train\[13\] cannot be read"):
        source[13]


def test_damaged_records_do_not_stop_threads(write_set):
    folder = labelled(write_set, shards=2)
    for shard in folder.glob("*array_record*"):
        data = bytearray(shard.read_bytes())
        data[500:30_000:7] = bytes(len(range(500, 30_000, 7)))
        shard.write_bytes(data)
    source = open_dataset(str(folder)).split("train")
    transform = parse_chain("resize", (8, 8))
    with train_batches(
        source, batch_size=32, transform=transform, seed=0, start=0, stop=4,
        bad_images="skip", num_threads=4,
    ) as batches:  # fmt: skip
        assert sum(int(batch["bad"].sum()) for batch in batches) == 128


@pytest.mark.parametrize(
    ("share", "splits"),
    [
        (0.1, ("train[:90%]", "train[90%:]")),
        (0.5, ("train[:50%]", "train[50%:]")),
        (0.375, ("train[:4]", "train[4:]")),
        (0.001, ("train[:5]", "train[5:]")),
    ],
)
def test_the_share_to_hold_out_of_the_only_split_is_an_option(share, splits):
    dataset = open_dataset("tiny_tags", SETS, DataOptions(hold_out=share))
    info = dataset.info
    assert (info.train_split, info.eval_split) == splits
    assert info.held_out
    assert sum(map(len, map(dataset.split, splits))) == 6


def test_label_outside_the_classes_is_an_error(write_set):
    import tensorflow_datasets as tfds

    features = {"label": tfds.features.ClassLabel(names=["a", "b"])}
    rows = [{"label": k} for k in (0, -1, 1)]
    source = open_dataset(str(write_set(features, {"train": rows}))).split("train")
    with pytest.raises(DecodeError, match=r"\[1\] cannot be read: its label is -1, no"):
        source[1]
    assert source.labels().tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("count", "splits"),
    [
        (20, {"train[:90%]": 18, "train[90%:]": 2}),
        (3, {"train[:2]": 2, "train[2:]": 1}),
        (2, {"train[:1]": 1, "train[1:]": 1}),
    ],
)
def test_something_is_held_out_of_few_examples(count, splits, write_set, caplog):
    import tensorflow_datasets as tfds

    features = {"label": tfds.features.ClassLabel(names=["a", "b"])}
    rows = [{"label": k % 2} for k in range(count)]
    dataset = open_dataset(str(write_set(features, {"train": rows})))
    assert dataset.info.with_splits().num_examples == splits
    assert {name: len(dataset.split(name)) for name in splits} == splits
    last = list(splits)[1]
    assert f"no split for evaluation: {last}, the end of the only one" in caplog.text
