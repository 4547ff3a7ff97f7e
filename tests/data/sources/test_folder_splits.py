"""Tests of which folders are splits, which are classes, and what is ambiguous."""

import pathlib

import pytest
from PIL import Image

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError


def fill(root: pathlib.Path, names, count: int = 2) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            (root / name / f"{k}.png").touch()


def opened(root, splits="", **options):
    return open_dataset(str(root), "", DataOptions(splits=splits, **options))


def counts(root, splits="", **options):
    return opened(root, splits, **options).info.num_examples


def refused(root, splits="") -> str:
    with pytest.raises(UserError) as error:
        opened(root, splits).info.with_splits()
    return str(error.value)


@pytest.mark.parametrize(
    ("train", "evaluation", "split"),
    [
        ("Training", "Testing", "test"),
        ("train", "dev", "val"),
        ("train", "Validation Set", "val"),
        ("01_train", "02_valid", "val"),
        ("imagenet-train", "imagenet-val", "val"),
        ("train_images", "test_images", "test"),
        ("TRAIN", "Valid", "valid"),
        ("trainset", "testset", "test"),
    ],
)
def test_folders_are_splits_by_their_usual_names(tmp_path, train, evaluation, split):
    fill(tmp_path / train, "ab", 3)
    fill(tmp_path / evaluation, "ab", 1)
    info = opened(tmp_path).info
    assert (info.train_split, info.eval_split) == ("train", split)
    assert info.num_examples == {"train": 6, split: 2}
    assert info.class_names == ("a", "b")
    assert not info.held_out
    # A run begun before continues with what it took them for.
    if evaluation == "Testing":
        assert opened(tmp_path, rules=1).info.class_names == ("Testing", "Training")
    if evaluation == "Validation Set":
        assert opened(tmp_path, rules=1).info.held_out


def test_classes_named_like_splits_are_classes_among_others(tmp_path, caplog):
    fill(tmp_path, ["bus", "train", "test", "steam train"])
    names = ("bus", "steam train", "test", "train")
    assert opened(tmp_path).info.class_names == names
    assert "'steam train', 'test', 'train': taken for classes like" in caplog.text
    assert opened(tmp_path, "none").info.class_names == names


def test_only_names_like_splits_are_ambiguous(tmp_path):
    fill(tmp_path / "kinds", ["steam train", "bullet train"])
    message = refused(tmp_path / "kinds")
    assert "several folders are for train: 'bullet train', 'steam train'" in message
    assert "data.splits='none'" in message
    info = opened(tmp_path / "kinds", "none").info
    assert info.class_names == ("bullet train", "steam train")

    fill(tmp_path / "gan", ["trainA", "trainB", "testA", "testB"])
    message = refused(tmp_path / "gan")
    assert "every folder in it looks like a split, but not all are known" in message
    assert "as in data.splits='test=testA,train=trainA'" in message

    fill(tmp_path / "loose", ["train", "test"])
    message = refused(tmp_path / "loose")
    assert "no images of any class in" in message
    assert "pass data.splits=none if every folder is a class" in message
    assert opened(tmp_path / "loose", "none").info.class_names == ("test", "train")


def test_several_folders_for_one_split_are_ambiguous(tmp_path):
    fill(tmp_path / "train", "ab", 3)
    fill(tmp_path / "val", "ab", 1)
    fill(tmp_path / "validation", "ab", 2)
    message = refused(tmp_path)
    assert "several folders are for val: 'val', 'validation'" in message
    assert counts(tmp_path, "train=train,val=validation") == {"train": 6, "val": 4}
    both = "train=train,val=val,val=validation"
    assert counts(tmp_path, both) == {"train": 6, "val": 6}
    each = "train=train,val=val,test=validation"
    assert counts(tmp_path, each) == {"train": 6, "val": 2, "test": 4}


def test_a_folder_beside_train_is_not_left_out_in_silence(tmp_path, caplog):
    fill(tmp_path / "train", "ab", 20)
    fill(tmp_path / "extra", "ab", 5)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").touch()
    message = refused(tmp_path)
    assert "beside 'train' it has folders with images that are not known" in message
    assert "'extra'. Name" in message
    assert counts(tmp_path, "train=train,val=extra") == {"train": 40, "val": 10}
    caplog.clear()
    assert sum(counts(tmp_path, "train=train").values()) == 40
    assert "data.splits does not name them: 'extra', 'labels'" in caplog.text


def test_a_test_folder_beside_the_classes(tmp_path):
    fill(tmp_path, "ab", 3)
    fill(tmp_path / "test", "ab", 1)
    assert "because it has folders with the same names" in refused(tmp_path)
    split = "train=.,test=test"
    assert f"as in data.splits='{split}'" in refused(tmp_path)
    assert counts(tmp_path, split) == {"train": 6, "test": 2}
    assert opened(tmp_path, split).info.class_names == ("a", "b")
    assert opened(tmp_path, "none").info.class_names == ("a", "b", "test")


def test_splits_inside_the_classes(tmp_path):
    for name in "ab":
        fill(tmp_path / name, ["train", "test"], 2)
    assert "has folders of splits inside those of classes, as in a/te" in refused(
        tmp_path
    )
    assert sum(counts(tmp_path, "none").values()) == 8


def test_one_folder_around_the_data_set_is_recognised(tmp_path):
    fill(tmp_path / "flowers" / "train", "ab")
    fill(tmp_path / "flowers" / "val", "ab")
    (tmp_path / "__MACOSX").mkdir()
    message = refused(tmp_path)
    assert "found one class ('flowers')" in message
    assert f"Or is {tmp_path}/flowers the data set, with 'train', 'val'?" in message
    (tmp_path / "outer").mkdir()
    (tmp_path / "flowers").rename(tmp_path / "outer" / "flowers")
    assert f"Or is {tmp_path}/outer/flowers the data set" in refused(tmp_path)


@pytest.mark.parametrize("layout", ["loose", "one folder"])
def test_an_unlabelled_test_folder_is_no_obstacle(tmp_path, layout, caplog):
    fill(tmp_path / "train", "ab", 20)
    fill(tmp_path / "val", "ab", 1)
    fill(tmp_path, ["test" if layout == "loose" else "test/images"], 5)
    dataset = opened(tmp_path)
    assert dataset.info.with_splits().num_examples == {"train": 40, "val": 2}
    assert dataset.info.class_names == ("a", "b")
    assert f"{tmp_path}/test has" in caplog.text
    for ask in (lambda: dataset.info.with_splits("", "test"), dataset.split):
        with pytest.raises(UserError, match="/test has no folders of classes, so its"):
            ask("test") if ask == dataset.split else ask()
    (tmp_path / "val").rename(tmp_path / ".val")
    info = opened(tmp_path).info  # then a part of train is held out
    assert info.held_out
    assert sum(info.num_examples.values()) == 40


def test_unknown_classes_of_a_split_matter_only_if_it_is_used(tmp_path, caplog):
    for split, classes in (("train", "ab"), ("val", "ab"), ("test", "abx")):
        fill(tmp_path / split, classes)
    dataset = opened(tmp_path)
    assert dataset.info.with_splits().num_classes == 2
    assert f"not used: {tmp_path}/test has classes that" in caplog.text
    with pytest.raises(UserError, match=r"test has classes that .* not have: 'x'"):
        dataset.info.with_splits("train", "test[:2]")
    with pytest.raises(UserError, match=r"test has classes that .* not have: 'x'"):
        dataset.split("val+test")
    fill(tmp_path / "val", "y")
    fill(tmp_path / "train", "x")
    info = opened(tmp_path).info  # now it is val that has an unknown class
    assert info.with_splits("", "test").num_examples == {"train": 6, "test": 6}
    with pytest.raises(UserError, match="val has classes that"):
        info.with_splits()


@pytest.mark.parametrize("name", ["val", "Validation Set", "train"])
def test_an_empty_split_is_not_replaced_in_silence(tmp_path, name):
    fill(tmp_path / "training", "ab")
    (tmp_path / name / "a").mkdir(parents=True)
    (tmp_path / name / "a" / "0.xyz").touch()
    found = "several folders are for train" if name == "train" else "with 1 × .xyz"
    assert found in refused(tmp_path)
    assert sum(counts(tmp_path, "train=training").values()) == 4


def test_a_split_that_is_a_link_to_another_is_said(tmp_path, caplog):
    fill(tmp_path / "train", "ab", 3)
    (tmp_path / "val").symlink_to("train")
    assert counts(tmp_path) == {"train": 6, "val": 6}
    assert "'train' and 'val' are the same folder, so their images" in caplog.text


def test_named_folders_that_do_not_exist(tmp_path):
    fill(tmp_path, ["one/a", "one/b"])
    message = refused(tmp_path, "train=One,val=two")
    assert f"{tmp_path} has no folder 'One', 'two'; it has 'one'" in message


def test_named_folders_may_lie_deeper(tmp_path):
    fill(tmp_path / "data" / "x", "ab", 3)
    fill(tmp_path / "data" / "y", "ab", 1)
    split = "train=data/x,val=data/y"
    assert counts(tmp_path, split) == {"train": 6, "val": 2}
    assert len(opened(tmp_path, split).split("val")) == 2


def test_what_is_beside_named_folders_is_accounted_for(tmp_path, caplog):
    fill(tmp_path / "data" / "x", "ab", 3)
    fill(tmp_path / "data", ["y", "."], 1)
    (tmp_path / "data" / "notes.txt").touch()
    dataset = opened(tmp_path / "data", "train=x")
    assert sum(dataset.info.num_examples.values()) == 6
    assert "not used, because data.splits does not name them: 'y'" in caplog.text
    dataset = opened(tmp_path, "train=data/x")
    assert sum(dataset.info.num_examples.values()) == 6
    assert "folders that are not used: 'data/y'" in caplog.text
    assert dataset.contents.left_out == {
        ".txt": 1,
        "images outside the folders of classes": 1,
    }


def test_a_split_inside_another_folder_of_classes_is_no_class(tmp_path):
    fill(tmp_path / "data", "ab", 3)
    fill(tmp_path / "data" / "val", "ab", 1)
    split = "train=data,val=data/val"
    assert opened(tmp_path, split).info.class_names == ("a", "b")
    assert counts(tmp_path, split) == {"train": 6, "val": 2}


def test_named_folders_may_be_anywhere(tmp_path):
    fill(tmp_path / "here" / "x", "ab", 3)
    fill(tmp_path / "there" / "y", "ab", 1)
    for place in (tmp_path / "there" / "y", "../there/y"):
        found = opened(tmp_path / "here", f"train=x,val={place}")
        assert found.info.num_examples == {"train": 6, "val": 2}
        assert found.contents.left_out == {}


def test_names_with_commas_can_be_named(tmp_path):
    fill(tmp_path / "a, b", "ab", 3)
    fill(tmp_path / "c=d", "ab", 1)
    assert counts(tmp_path, "train=a, b,val=c=d") == {"train": 6, "val": 2}


@pytest.mark.parametrize("target", ["nothing", "val"])
def test_a_split_that_is_a_link_to_nowhere_is_not_replaced(tmp_path, target, caplog):
    fill(tmp_path / "train", "ab", 20)
    (tmp_path / "val").symlink_to(target)
    message = refused(tmp_path)
    assert "has links that look like splits, but lead nowhere: 'val'" in message
    assert sum(counts(tmp_path, "train=train").values()) == 40
    (tmp_path / "val").rename(tmp_path / "extra")
    (tmp_path / "train" / "c").symlink_to(target)
    dataset = opened(tmp_path)
    assert dataset.info.class_names == ("a", "b")
    assert "links that lead nowhere: 'extra', 'train/c'" in caplog.text
    assert dataset.contents.left_out == {"links that lead nowhere": 2}


def test_decoded_images_come_from_the_named_folder(tmp_path):
    fill(tmp_path / "Dev Set", "ab", 1)
    fill(tmp_path / "Training", "ab", 1)
    Image.new("RGB", (3, 5)).save(tmp_path / "Dev Set" / "a" / "0.png")
    source = opened(tmp_path, "train=Training,val=Dev Set").split("val")
    names = {source[k].name: source[k].label for k in range(2)}
    assert names == {
        str(tmp_path / "Dev Set" / "a" / "0.png"): 0,
        str(tmp_path / "Dev Set" / "b" / "0.png"): 1,
    }
