"""Tests of folders that look like classes but hold splits, copies or parts."""

import pytest

from tests.data.sources.test_folder_splits import counts, fill, opened, refused
from vit_jax.data.sources.image_files import Walker
from vit_jax.data.sources.not_classes import alike, named_as_parts, unwrapped


@pytest.mark.parametrize(
    ("outer", "example"),
    [
        (["tr", "te"], "train=te,val=tr"),
        (["fold1", "fold2", "fold3"], "train=fold1,val=fold3"),
        (["learning", "testing"], "train=learning,test=testing"),
        (["color", "grayscale", "segmented"], "train=color,val=segmented"),
    ],
)
def test_folders_of_the_same_names_inside_are_ambiguous(tmp_path, outer, example):
    for name in outer:
        fill(tmp_path / name, "ab", 3)
    message = refused(tmp_path)
    shown = ", ".join(map(repr, sorted(outer)))
    assert f"{shown} hold folders of the same names ('a', 'b'): the" in message
    assert f"as in data.splits='{example}', or pass data.splits='none'" in message
    assert opened(tmp_path, example).info.class_names == ("a", "b")
    assert counts(tmp_path, example)["train"] == 6
    assert opened(tmp_path, "none").info.class_names == tuple(sorted(outer))
    assert opened(tmp_path, rules=1).info.class_names == tuple(sorted(outer))


def test_several_folders_may_be_one_split(tmp_path):
    for name in ("fold1", "fold2", "fold3"):
        fill(tmp_path / name, "ab", 3)
    folds = "train=fold1,train=fold2,val=fold3"
    assert counts(tmp_path, folds) == {"train": 12, "val": 6}


def test_one_other_folder_beside_splits_of_unknown_names(tmp_path):
    # As in Kaggle's "Intel Image Classification".
    for name in ("seg_train", "seg_test"):
        fill(tmp_path / name / name, ["forest", "sea", "street"], 2)
    fill(tmp_path / "seg_pred", ["seg_pred"], 5)
    message = refused(tmp_path)
    assert "'seg_test', 'seg_train' hold folders of the same names" in message
    split = "train=seg_train,test=seg_test"
    assert "as in data.splits='test=seg_test,train=seg_train'" in message
    assert counts(tmp_path, split) == {"train": 6, "test": 6}
    assert opened(tmp_path, split).info.class_names == ("forest", "sea", "street")
    fill(tmp_path, ["x", "y", "z"])  # then it is most of the folders no more
    message = refused(tmp_path)
    assert "'seg_test', 'seg_train' may be splits, because 'seg_test', " in message


def test_classes_with_folders_of_their_own_are_classes(tmp_path):
    fill(tmp_path / "animals", ["cat", "dog", "other"])
    fill(tmp_path / "vehicles", ["bus", "car", "other"])
    assert opened(tmp_path).info.class_names == ("animals", "vehicles")
    assert sum(counts(tmp_path).values()) == 12


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("ab", "ab", True),
        ("ab", "AB", True),
        ("abc", "abx", True),
        ("abcd", "abxy", False),  # only half
        ("ab", "a", False),
        ("a", "a", False),  # one may be a coincidence
        (["cafe\u0301", "b"], ["caf\u00e9", "b"], True),
    ],
)
def test_more_than_half_of_the_folders_inside_are_the_same(
    tmp_path, first, second, same
):
    fill(tmp_path / "x", first)
    fill(tmp_path / "y", second)
    found, common = alike(str(tmp_path), ["x", "y"], Walker())
    assert found == (["x", "y"] if same else [])
    assert len(common) == (2 if same else 0)


@pytest.mark.parametrize(
    "names",
    [
        ["images_001", "images_002"],
        ["images", "masks"],
        ["part1", "Part 2"],
        ["HAM10000_images_part_1", "HAM10000_images_part_2"],
        ["JPEGImages", "segmentations"],
    ],
)
def test_names_of_parts(tmp_path, names):
    assert named_as_parts(names)
    fill(tmp_path, names, 4)
    message = refused(tmp_path)
    assert "has no folder with the name of a class, only " in message
    assert "data.splits='none'" in message
    assert len(opened(tmp_path, "none").info.class_names) == len(names)
    assert len(opened(tmp_path, rules=1).info.class_names) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1"],
        ["images"],
        ["class_1", "class_2"],
        ["images of type 1", "images of type 2"],
        ["cats_images", "dogs_images"],
        ["photo", "sketch"],
        ["mask", "no mask"],
        ["with_mask", "without_mask"],
        ["crop", "weed"],
        ["set", "clear"],
        ["data cable", "file folder"],
        ["---", "***"],
    ],
)
def test_names_of_classes(names):
    assert not named_as_parts(names)


@pytest.mark.parametrize("wrapper", ["{}", "images", "Images", "{}_set/data"])
def test_a_folder_around_the_classes_is_entered(tmp_path, wrapper, caplog):
    for split, count in (("train", 3), ("test", 1)):
        fill(tmp_path / split / wrapper.format(split), "ab", count)
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "0.txt").touch()
        (tmp_path / split / "notes.md").touch()
    dataset = opened(tmp_path)
    assert dataset.info.with_splits().num_examples == {"train": 6, "test": 2}
    assert dataset.info.class_names == ("a", "b")
    assert "folders that are not used: 'test/labels', 'train/labels'" in caplog.text
    assert dataset.contents.left_out == {".md": 2}
    named = counts(tmp_path, "train=train,val=test")
    assert named == {"train": 6, "val": 2}


def test_folders_that_are_no_wrappers_are_not_entered(tmp_path):
    def found(below):
        return unwrapped(str(tmp_path), below, Walker())

    fill(tmp_path / "one" / "cats", "ab")  # a class with two folders
    assert found("one") == "one"
    fill(tmp_path / "two" / "images", [""])  # images without folders of classes
    assert found("two") == "two"
    fill(tmp_path / "three", ["images/a", "images/b", "."])  # images beside it
    assert found("three") == "three"
    fill(tmp_path / "train" / "test", "ab")  # another split
    assert found("train") == "train"
    fill(tmp_path / "val" / "validation", "ab")
    assert found("val") == "val/validation"
