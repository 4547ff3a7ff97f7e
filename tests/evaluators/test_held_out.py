"""The part of the data that is evaluated, and whether it was trained on."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.evaluators.held_out import TrainedWith, part_to_evaluate

COUNT = 20  # images of each class


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of two classes, without splits."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(COUNT):
            pixels = np.full((2, 2, 3), k, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{k}.png")
    return tmp_path / "set"


def config(dataset="", examples=(), fingerprints=(), **more):
    splits = {"train_split": "", "eval_split": ""}
    data = {} if not dataset else {"data": {"rules": 2}}
    values = {"dataset": str(dataset), "data_dir": "", **splits, **data, **more}
    return TrainedWith(values, dict(examples), dict(fingerprints))


def part(*arguments, **options):
    found = part_to_evaluate(*arguments, **options)
    return found.split, found.trained_on, bool(found.remark)


def held_out(folder):
    counts = open_dataset(str(folder)).info.num_examples
    assert 0 < counts["val"] < counts["train"]
    return counts


def test_the_own_data_are_measured_on_what_was_held_out(folder):
    held_out(folder)
    assert part(config(folder)) == ("val", 0, False)
    for same in (f"{folder}/", f"{folder}/../set"):
        assert part(config(folder), same) == ("val", 0, False)


def test_a_link_to_the_data_is_the_same_place(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert part(config(folder), str(tmp_path / "link")) == ("val", 0, False)


def test_the_splits_of_the_run_are_used(folder):
    own = config(folder, train_split="train[:50%]", eval_split="train[50%:]")
    assert part(own) == ("train[50%:]", 0, False)


def test_an_overlap_with_the_training_split_is_said(folder):
    counts = held_out(folder)
    trained = counts["train"]
    assert part(config(folder), split="train") == ("train", trained, True)
    assert part(config(folder), split="train[:3]+val") == ("train[:3]+val", 3, True)
    remark = part_to_evaluate(config(folder), split="train+val").remark
    assert remark.startswith(f"the model was trained on {trained} of these images")


def test_weights_from_elsewhere_are_measured_on_everything(folder):
    held_out(folder)
    assert part(config(), str(folder)) == ("train+val", None, True)
    # A part that is set apart for evaluation needs no remark.
    assert part(config(), str(folder), split="val") == ("val", None, False)
    assert part(config(), "digits") == ("test", None, False)


def test_a_copy_of_the_data_is_not_known(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert part(config(folder), str(tmp_path / "copy")) == ("train+val", None, True)


def recorded(folder):
    """Returns what a run on a folder records."""
    dataset = open_dataset(str(folder))
    sources = {name: dataset.split(name) for name in ("train", "val")}
    return config(
        folder,
        {name: len(source) for name, source in sources.items()},
        {name: source.fingerprint() for name, source in sources.items()},
    )


def test_a_copy_is_known_by_the_recorded_fingerprints(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    own = recorded(folder)
    assert part(own, str(tmp_path / "copy")) == ("val", 0, False)
    shutil.rmtree(folder)
    assert part(own, str(tmp_path / "copy")) == ("val", 0, False)
    # As many images of the same classes, but others.
    (tmp_path / "copy/a/0.png").rename(tmp_path / "copy/a/new.png")
    assert part(own, str(tmp_path / "copy")) == ("train+val", None, True)


def test_own_data_that_have_changed_are_no_longer_known(folder):
    own = recorded(folder)
    assert part(own) == ("val", 0, False)
    for k in range(20):
        shutil.copy(folder / "a/0.png", folder / f"a/new{k}.png")
    assert part(own) == ("val", None, True)
    assert "changed since" in part_to_evaluate(own).remark


def test_another_hold_out_of_the_own_data_is_compared_by_files(folder):
    options = ["hold_out=0.5"]
    found = part_to_evaluate(config(folder), options=options)
    source = found.dataset.split(found.split)
    names = {source[i].name for i in range(len(source))}
    whole = open_dataset(str(folder)).split("train")
    trained = {whole[i].name for i in range(len(whole))}
    assert found.trained_on == len(names & trained) > 0


def test_a_folder_inside_the_own_data_is_compared_by_files(folder, tmp_path):
    for split, names in (("train", range(15)), ("val", range(15, COUNT))):
        for name in "ab":
            (tmp_path / "both" / split / name).mkdir(parents=True)
            for k in names:
                target = tmp_path / "both" / split / name / f"{k}.png"
                shutil.copy(folder / name / f"{k}.png", target)
    own = config(tmp_path / "both")
    assert part(own, str(tmp_path / "both/val")) == ("train+val", 0, False)
    assert part(own, str(tmp_path / "both/train")) == ("train+val", 30, True)
    # The other way round: trained on a tenth less than train, evaluated on val.
    inner = config(tmp_path / "both/train")
    assert part(inner, str(tmp_path / "both")) == ("val", 0, False)


def test_data_that_are_gone_are_not_compared(folder):
    gone = folder.parent / "gone"
    assert part(config(gone), str(folder)) == ("train+val", None, True)


def test_a_split_that_does_not_exist_is_refused(folder):
    with pytest.raises(UserError, match="has the splits train"):
        part(config(folder), split="tset")


def test_an_unlabelled_split_is_refused_by_its_reason(folder, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "both" / split)
    (tmp_path / "both/test").mkdir()
    shutil.copy(folder / "a/0.png", tmp_path / "both/test/0.png")
    for own in (config(), config(tmp_path / "both")):
        with pytest.raises(UserError, match="test has no folders of classes"):
            part(own, str(tmp_path / "both"), split="test")


def test_unknown_classes_of_the_own_data_can_be_evaluated(folder, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "both" / split)
    shutil.copytree(folder / "a", tmp_path / "both/test/a0")
    shutil.copytree(folder / "a", tmp_path / "both/test/b")
    own = recorded(tmp_path / "both")
    assert part(own) == ("val", 0, False)
    found = part_to_evaluate(own, split="test")
    assert (found.trained_on, found.remark) == (0, "")
    source = found.dataset.split("test")
    names = [source.class_names[label] for label in source.labels()]
    assert {name: names.count(name) for name in names} == {"a0": COUNT, "b": COUNT}


def test_counts_and_fingerprints_each_show_other_data(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    own = recorded(folder)
    prints = {
        split: found | {"labels": "0"} for split, found in own.fingerprints.items()
    }
    labelled_otherwise = own._replace(fingerprints=prints)
    assert part(labelled_otherwise) == ("val", None, True)
    assert part(labelled_otherwise, str(tmp_path / "copy")) == ("train+val", None, True)
    # Versions before recorded the counts alone.
    older = own._replace(fingerprints={})
    assert part(older) == ("val", 0, False)
    fewer = older._replace(examples=own.examples | {"train": own.examples["train"] - 1})
    assert part(fewer) == ("val", None, True)
