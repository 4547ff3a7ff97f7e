"""Tests of the facts of data sets that are known before they are read."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import datasets
from vit_jax.data.sources.datasets import PRESETS, open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError

FIRST_TRAIN_LABELS = [7, 1, 3, 4, 9, 4, 1, 3]
FIRST_TEST_LABELS = [4, 2, 1, 3, 0, 7, 9, 8]


def test_presets_have_their_published_counts():
    counts = {
        name: (info.num_classes, *info.num_examples.values())
        for name, info in PRESETS.items()
    }
    assert counts == {
        "digits": (10, 1437, 360),
        "cifar10": (10, 50_000, 10_000),
        "cifar100": (100, 50_000, 10_000),
        "oxford_iiit_pet": (37, 3_680, 3_669),
        "oxford_flowers102": (102, 1_020, 1_020, 6_149),
        "imagenet2012": (1_000, 1_281_167, 50_000),
        "imagenet21k": (21_843, 14_197_122),
        "jft300m": (18_291, 303_000_000, 50_000),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_described_without_their_data(name, monkeypatch):
    def never(*_):
        raise AssertionError("asked for the data")

    monkeypatch.setattr(datasets.tfds_sets, "open_name", never)
    info = open_dataset(name).info.with_splits()
    assert set(info.num_examples) == {info.train_split, info.eval_split}
    assert min(info.num_examples.values()) > 0


def test_slices_are_counted():
    info = open_dataset("cifar10").info.with_splits("train[:98%]", "train[98%:]")
    assert (info.train_split, info.eval_split) == ("train[:98%]", "train[98%:]")
    assert info.num_examples == {"train[:98%]": 49_000, "train[98%:]": 1_000}
    info = open_dataset("digits").info.with_splits("train+test", "train[4:10]")
    assert info.num_examples == {"train+test": 1797, "train[4:10]": 6}
    i21k = open_dataset("imagenet21k").info.with_splits().num_examples
    assert i21k == {"full[51200:]": 14_145_922, "full[:51200]": 51_200}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("valid", r"'valid' cannot be read\. digits has the splits train \(1,437\), t"),
        ("train[:x]", "cannot be read"),
        ("train[5:5]", "selects no example"),
        ("train[9000:]", "cannot be read|selects no example"),
    ],
)
def test_wrong_split_error_lists_the_splits(split, message):
    with pytest.raises(UserError, match=message):
        open_dataset("digits").info.with_splits(split)
    with pytest.raises(UserError, match=message):
        open_dataset("digits").split(split)


def test_preset_takes_precedence_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "cifar10" / name).mkdir(parents=True)
        for k in range(10):
            image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
            image.save(tmp_path / "cifar10" / name / f"{k}.png")
    assert open_dataset("cifar10").info.with_splits().num_examples["train"] == 50_000
    assert sum(open_dataset("./cifar10").info.with_splits().num_examples.values()) == 20
    monkeypatch.setattr(datasets.tfds_sets, "tensorflow_is_installed", lambda: False)
    with pytest.raises(UserError, match="'cifar10' is not prepared"):
        open_dataset("cifar10", str(tmp_path / "sets")).split()
    (tmp_path / "cifar10").rename(tmp_path / "mine")
    assert open_dataset("mine").info.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits", "this is the embedded data set, not {here}/digits; for that, write"),
        (
            "cifar10",
            "this is the tensorflow-datasets data set, not {here}/cifar10",
        ),
        (
            "mnist",
            "this is {here}/mnist, not the tensorflow-datasets set",
        ),
        ("tf_flowers", "this is {here}/tf_flowers, not the tensorflow-datasets set"),
        ("./digits", ""),
        ("digits/", ""),
        ("linked", ""),
    ],
)
def test_a_folder_named_like_a_published_set(tmp_path, monkeypatch, caplog, name, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.tfds_sets, "tensorflow_is_installed", lambda: False)
    for label in ("a", "b"):
        for folder in ("digits", "cifar10", "mnist", "tf_flowers"):
            (tmp_path / folder / label).mkdir(parents=True)
            for k in range(2):
                (tmp_path / folder / label / f"{k}.png").touch()
    (tmp_path / "linked").symlink_to("mnist")
    dataset = open_dataset(name, str(tmp_path / "sets"))
    with contextlib.suppress(UserError):  # cifar10 is not prepared
        _ = dataset.contents
    told = [message for message in caplog.messages if "this is" in message]
    assert len(told) == bool(said)
    if said:
        assert told[0].startswith(f"{name}: {said.format(here=tmp_path)}")
    monkeypatch.chdir("/")
    assert open_dataset("digits").about_name == ()


def test_a_kind_chooses_between_two_data_sets_of_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits/a/0.png", "digits/b/0.png", "digits/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    dataset = open_dataset("digits", "", DataOptions(kind="image folder"))
    assert dataset.location == str(tmp_path / "digits")
    assert dataset.info.class_names == ("a", "b")
    (tmp_path / "cats").mkdir()
    dataset = open_dataset("cats", "", DataOptions(kind="tensorflow-datasets"))
    assert (dataset.kind, dataset.location) == ("tensorflow-datasets", "cats")


def test_empty_name_lists_the_kinds():
    with pytest.raises(UserError, match="no dataset given: expected 'digits'"):
        open_dataset("")


def test_digits_split_is_stratified_and_never_changes():
    train, test = map(open_dataset("digits").split, ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    counts = np.bincount([test[i].label for i in range(len(test))])
    assert counts.min() >= 35
    assert counts.max() <= 37
    # Every published number depends on the split, so it must never change.
    assert [train[i].label for i in range(8)] == FIRST_TRAIN_LABELS
    assert [test[i].label for i in range(8)] == FIRST_TEST_LABELS
    pixels = np.stack([test[i].image for i in range(len(test))])
    assert pixels.shape == (360, 8, 8, 1)
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    seen = {train[i].image.tobytes() for i in range(len(train))}
    assert not seen & {one.tobytes() for one in pixels}


def test_digits_are_named_by_split_and_position():
    assert open_dataset("digits").split("train[10:20]")[2].name == "digits/train[12]"
    assert open_dataset("digits").split()[0].name == "digits/train[0]"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("group_column", "patient"),
        ("label_columns", "is_*"),
        ("image_root", "images"),
    ],
)
def test_options_of_columns_need_a_table(option, value, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(3):
            (tmp_path / name / f"{k}.png").touch()
    expected = rf"data.{option}='.*': .* is read as {{}}, which has no columns"
    for place, kind in ((tmp_path, "a folder of images"), ("digits", "the embedded")):
        dataset = open_dataset(str(place), "", DataOptions(**{option: value}))
        with pytest.raises(UserError, match=expected.format(f"{kind}.*")):
            dataset.split()


def test_a_share_that_has_no_effect_is_said(tmp_path, caplog):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").touch()
    open_dataset(str(tmp_path), "", DataOptions(hold_out=0.3)).split("val")
    assert "data.hold_out=0.3 has no effect: there is a split for evaluation, val" in (
        caplog.text
    )
    caplog.clear()
    open_dataset(str(tmp_path / "train"), "", DataOptions(hold_out=0.3), to_train=False)
    open_dataset(str(tmp_path)).split("val")
    assert "no effect" not in caplog.text
