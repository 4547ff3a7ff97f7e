"""Tests of ImageNet as unpacked from its archives: validation images in one folder."""

import pytest

from vit_jax.data.sources import imagenet
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.folders import list_folder
from vit_jax.errors import UserError


def test_lists_match_the_published_ones():
    names = imagenet.class_names()
    assert len(names) == 1000
    assert (names[0], names[-1]) == ("n01440764", "n15075141")
    assert list(names) == sorted(names)
    # The first validation image shows a sea snake, the fifth a cradle.
    classes = [
        imagenet.validation_class(f"ILSVRC2012_val_{k:08d}.JPEG") for k in (1, 5)
    ]
    assert [names.index(name) for name in classes] == [65, 516]
    assert imagenet.validation_class("ILSVRC2012_val_00050001.JPEG") is None
    assert imagenet.validation_class("ILSVRC2012_val_00000000.JPEG") is None
    assert imagenet.validation_class("ILSVRC2012_test_00000001.JPEG") is None
    of_class = {}
    for k in range(1, 50_001):
        name = imagenet.validation_class(f"ILSVRC2012_val_{k:08d}.JPEG")
        of_class[name] = of_class.get(name, 0) + 1
    assert of_class == dict.fromkeys(names, 50)


@pytest.fixture
def root(tmp_path):
    for name in ("n01751748", "n09193705", "n02105855"):
        for k in range(4):
            file = tmp_path / "train" / name / f"{name}_{k}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "val").mkdir()
    for k in (1, 2, 3):
        (tmp_path / "val" / f"ILSVRC2012_val_{k:08d}.JPEG").touch()
    return tmp_path


def test_a_flat_folder_of_validation_images(root):
    info = open_dataset(str(root)).info.with_splits()
    assert info.class_names == ("n01751748", "n02105855", "n09193705")
    assert info.num_examples == {"train": 12, "val": 3}
    assert dict(list_folder(str(root)).files["val"]) == {
        "val/ILSVRC2012_val_00000001.JPEG": 0,
        "val/ILSVRC2012_val_00000002.JPEG": 2,
        "val/ILSVRC2012_val_00000003.JPEG": 1,
    }
    assert sorted(open_dataset(str(root)).split("val").labels()) == [0, 1, 2]


def test_other_loose_files_are_ignored(root):
    (root / "val" / "notes.txt").touch()
    (root / "val" / "other.jpg").touch()
    assert open_dataset(str(root)).info.with_splits().num_examples["val"] == 3


def test_unknown_number_and_untrained_class_are_refused(root):
    (root / "val" / "ILSVRC2012_val_00000004.JPEG").touch()
    with pytest.raises(UserError, match=r"val has classes that .*: 'n04263257'"):
        open_dataset(str(root)).info.with_splits()
    (root / "val" / "ILSVRC2012_val_00050001.JPEG").touch()
    with pytest.raises(UserError, match=r"val/ILSVRC2012_val_00050001.JPEG: ImageNet"):
        open_dataset(str(root)).info.with_splits()
