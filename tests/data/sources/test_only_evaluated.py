"""Tests of data on which no run can train, but a trained model can be evaluated."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError


def write(root: pathlib.Path, images) -> list[str]:
    """Writes images {folder: number}; returns their paths."""
    paths = []
    for folder, number in images.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(number):
            paths.append(f"{folder}/{k}.png")
            Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(root / paths[-1])
    return paths


def labelled(source) -> dict[str, int]:
    """Returns the classes of a source's examples and how many each has."""
    found = [source.class_names[source[i].label] for i in range(len(source))]
    return {name: found.count(name) for name in sorted(set(found))}


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ({"cat": 6}, r"found one class \('cat'\) to train on"),
        ({"cat": 1, "dog": 1}, r"2 image\(s\), too few to hold one out"),
        ({"cat": 1}, r"found one class \('cat'\) to train on"),
        ({"train/cat": 3, "val/cat": 2}, r"found one class \('cat'\) to train on"),
    ],
)
def test_folders(images, problem, tmp_path):
    write(tmp_path, images)
    with pytest.raises(UserError, match=problem):
        open_dataset(str(tmp_path)).info.with_splits()
    dataset = open_dataset(str(tmp_path), to_train=False)
    expected = {name: count for name, count in images.items() if "/" not in name}
    assert labelled(dataset.split(dataset.whole)) == (expected or {"cat": 2})


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ({"train": {"cat": 4}}, r"found 1 class\(es\) \('cat'\)"),
        (
            {"train": {"cat": 1, "dog": 1}},
            r"2 row\(s\) of 2 classes, too few to hold one out",
        ),
        ({"test": {"cat": 2, "dog": 2}}, "has no row to train on, only test"),
        ({"val": {"cat": 2}, "test": {"dog": 2}}, "no row to train on, only val, test"),
        (
            {"train": {"cat": 2}, "val": {"dog": 2}},
            r"found 1 class\(es\) \('cat'\)",
        ),
    ],
)
def test_tables(splits, problem, tmp_path):
    lines = ["image,label,split"]
    for split, images in splits.items():
        for name, count in images.items():
            lines += [
                f"{path},{name},{split}"
                for path in write(tmp_path, {f"{split}-{name}": count})
            ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=problem):
        open_dataset(str(tmp_path / "t.csv")).info.with_splits()
    dataset = open_dataset(str(tmp_path / "t.csv"), to_train=False)
    evaluated = [images for split, images in splits.items() if split != "train"]
    whole = [*evaluated, splits.get("train")][0]
    assert labelled(dataset.split(dataset.whole)) == whole
    for split, images in splits.items():
        if len(splits) > 1:
            assert labelled(dataset.split(split)) == images


def test_one_group_cannot_be_divided_but_evaluated(tmp_path):
    from vit_jax.data.sources.options import DataOptions

    paths = write(tmp_path, {"cat": 4, "dog": 4})
    lines = ["image,label,patient", *(f"{path},{path[:3]},1" for path in paths)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    arguments = str(tmp_path / "t.csv"), "", DataOptions(group_column="patient")
    with pytest.raises(
        UserError, match=r"8 row\(s\) of 2 classes, all in one group of .*'patient'"
    ):
        open_dataset(*arguments).info.with_splits()
    dataset = open_dataset(*arguments, to_train=False)
    assert labelled(dataset.split(dataset.whole)) == {"cat": 4, "dog": 4}


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_classes_that_are_not_trained_on(kind, tmp_path):
    images = {"train/cat": 2, "train/dog": 2, "val/cat": 2, "val/emu": 3, "test/dog": 2}
    paths = write(tmp_path, images)
    lines = [f"{p},{p.split('/')[1]},{p.split('/')[0]}" for p in paths]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split", *lines]))
    place = str(tmp_path / "t.csv" if kind == "table" else tmp_path)
    with pytest.raises(UserError, match="'emu'"):
        open_dataset(place).split("val")
    dataset = open_dataset(place, to_train=False)
    assert dataset.info.eval_split == "val"
    assert labelled(dataset.split("val")) == {"cat": 2, "emu": 3}
    assert labelled(dataset.split("test+val[:50%]")).keys() >= {"dog"}
    # What was trained on keeps the labels that it has in training.
    for split in ("train", "test"):
        source, same = (open_dataset(place, to_train=t).split(split) for t in (0, 1))
        assert source.fingerprint() == same.fingerprint()


def test_damaged_data_stay_errors(tmp_path):
    with pytest.raises(UserError, match="no images of any class"):
        open_dataset(str(tmp_path), to_train=False).split()
