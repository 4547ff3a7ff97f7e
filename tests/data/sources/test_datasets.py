"""Tests of the facts of data sets that are known before they are read."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import datasets
from vit_jax.data.sources.datasets import PRESETS, open_dataset
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
