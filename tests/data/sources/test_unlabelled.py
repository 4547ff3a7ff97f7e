"""Tests of folders of images without labels."""

import os

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.check import check
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError

UNLABELLED = DataOptions(kind="unlabelled")
PHOTOS = ("a.png", "b.jpg", "trip/c.png", "trip/day 1/d.PNG", "val/e.png")


@pytest.fixture
def photos(tmp_path):
    for value, name in enumerate(PHOTOS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_all_images_at_any_depth_are_one_split_without_classes(photos):
    dataset = open_dataset(str(photos), options=UNLABELLED)
    info = dataset.info
    assert (info.num_classes, info.class_names) == (0, ())
    assert info.num_examples == {"train": len(PHOTOS)}
    assert (info.train_split, info.eval_split, info.held_out) == ("train",) * 2 + (
        False,
    )
    source = dataset.split("train")
    found = {os.path.relpath(source[i].name, photos) for i in range(len(source))}
    assert found == set(PHOTOS)
    assert dataset.contents.left_out == {".txt": 1}


@pytest.mark.parametrize("number", [0, 1])
def test_an_empty_folder_and_a_missing_one_are_errors(tmp_path, number):
    path = (tmp_path, tmp_path / "nowhere")[number]
    with pytest.raises(UserError, match=("no images in", "there is no folder")[number]):
        _ = open_dataset(str(path), options=UNLABELLED).info


@pytest.mark.parametrize("given", [{"splits": "train=trip"}, {"hold_out": 0.2}])
def test_splits_of_it_are_refused(photos, given):
    options = DataOptions(kind="unlabelled", **given)
    with pytest.raises(UserError, match=r"no splits.*name the folder to train on"):
        _ = open_dataset(str(photos), options=options).info


def test_the_report_of_data_without_labels(photos):
    report = check(str(photos), options=UNLABELLED)
    assert (report.class_names, report.class_counts) == ((), {})
    assert report.used == {"train": "training without labels"}
    assert report.problems == []
    assert report.to_dict()["splits"]["train"]["examples"] == len(PHOTOS)


def test_a_folder_without_classes_says_how_to_take_it(photos):
    for name in ("trip/c.png", "trip/day 1/d.PNG", "val/e.png"):
        (photos / name).unlink()
    with pytest.raises(UserError, match=r"Or have the images no labels.*unlabelled"):
        _ = open_dataset(str(photos)).info


def test_a_single_folder_says_how_to_take_it(photos):
    (photos / "val/e.png").unlink()
    with pytest.raises(UserError, match=r"one class \('trip'\).*data.kind=unlabelled"):
        _ = open_dataset(str(photos)).info
