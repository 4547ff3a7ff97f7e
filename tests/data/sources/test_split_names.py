"""Tests of the spellings of splits that are known."""

import pytest

from vit_jax.data.sources.split_names import (
    PLAIN_NAMES,
    canonical,
    is_unmistakable,
    resembles_split,
    role,
)

KNOWN = {
    "train": [
        *("Training", "TRAIN ", "trn", "train_images", "01_train", "TrainingSet"),
        *("trainImages", "images-train", "train2017", "traindata", "trainval"),
        *("Train Data (resized)", "training set of images", "TRAINING_IMGS"),
    ],
    "val": [
        *("dev", "Dev Set", "Validation Set", "VALIDATION-SET", "valset", "val2017"),
        *("validation_data", "2_validation", "eval", "Evaluation", "development"),
        *("held-out", "hold out", "HoldOut", "valid images", "imgVal"),
    ],
    "test": [
        "Testing",
        "test data",
        "test1",
        "tst",
        "TestSet",
        "images_test",
        "TESTING",
    ],
}
PREFIXED = {
    "imagenet-val": "val",
    "cats_and_dogs_train": "train",
    "ILSVRC2012_img_val": "val",
    "birds-2 test set": "test",
    "steam train": "train",
}
OTHERS = [
    *("bus", "trainer", "contest", "latest", "pretrain", "attest", "evaluator", ""),
    *("trains", "validity", "development-board", "test tube", "train station", "7"),
    *("train+val", "train-test", "trainA", "testB", "dogs", "データ"),
]


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for split in KNOWN for name in KNOWN[split]]
)
def test_usual_spellings(name, split):
    assert canonical(name) == split
    assert is_unmistakable(name)
    assert resembles_split(name)


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_plain_names_stay_as_they_are(name):
    for written in (name, name.upper(), name.capitalize()):
        assert canonical(written) == name


@pytest.mark.parametrize("name", PREFIXED)
def test_the_name_of_a_data_set_may_come_first(name):
    assert canonical(name) == PREFIXED[name]
    assert not is_unmistakable(name)


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_mean_no_split(name):
    assert canonical(name) is None
    assert not is_unmistakable(name)


def test_names_with_a_word_for_a_split_are_suspicious():
    assert all(map(resembles_split, ("trainA", "test tube", "train+val", "val")))
    assert not any(map(resembles_split, ("bus", "contest", "validity", "trains")))


def test_names_for_the_same_split_have_the_same_role():
    assert [role(name) for name in PLAIN_NAMES] == [
        "train",
        "val",
        "val",
        "val",
        "test",
    ]
    assert role("extra") == "extra"
