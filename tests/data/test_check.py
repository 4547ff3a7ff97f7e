"""Tests of `python -m vit_jax.data`: contents, and differences from a published set."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import vit_jax.data.__main__ as command
from vit_jax.data import check as check_module
from vit_jax.data import decode, preprocessing, suspicious
from vit_jax.data.check import check
from vit_jax.data.sources import imagenet, tfds_sets
from vit_jax.data.sources.datasets import PRESETS
from vit_jax.errors import UserError

SETS = str(pathlib.Path(__file__).parents[1] / "fixtures" / "tfds")


def write(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def root(tmp_path):
    """A folder with train: 3 × a, 5 × b, 2 × c; val: 1 × a, 2 × b, 4 × c."""
    counts = {"train": (3, 5, 2), "val": (1, 2, 4)}
    for split, numbers in counts.items():
        for name, number in zip("abc", numbers, strict=True):
            for k in range(number):
                write(tmp_path / "set" / split / name / f"{k}.png")
    return tmp_path / "set"


def test_reports_a_folder(root, run_command, capsys):
    run_command(command, root)
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"{root} (image folder)"
    assert "3 classes" in text
    assert (
        "train: 10 examples\n  smallest class: 'c', 2\n  largest class: 'b', 5" in text
    )
    assert "val: 7 examples\n  smallest class: 'a', 1\n  largest class: 'c', 4" in text
    assert "4×6 pixels" in text
    assert "missing" not in text
    run_command(command, root, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "image folder"
    assert found["splits"]["train"].pop("first").pop("name").startswith(str(root))
    assert found["splits"]["train"] == {
        "examples": 10,
        "smallest": {"class": "c", "examples": 2},
        "largest": {"class": "b", "examples": 5},
    }
    assert (found["classes"], found["held_out"]) == (3, False)
    assert found["problems"] == []


def test_reports_uses_classes_and_what_was_left_out(root, run_command, capsys):
    for name in ("train/a/x.xyz", "train/b/.x.png", "val/a/empty.png"):
        (root / name).touch()
    for k in range(9):
        write(root / "train" / f"more {k}" / "0.png")
    (root / "val").rename(root / "Dev Set")
    with pytest.raises(SystemExit):
        run_command(command, root)
    lines = capsys.readouterr().out.splitlines()
    more = ", ".join(f"'more {k}'" for k in (5, 6, 7, 8))
    assert lines[1] == f"12 classes: a, b, c, 'more 0', …, {more}"
    assert "train is for training; val is for evaluation" in lines
    assert "left out: 1 × .xyz, 1 × hidden" in lines
    assert "splits by the names of folders: val is 'Dev Set'" in lines
    assert lines[-1] == (
        "missing or wrong: val: 1 of the 8 files looked at are empty: "
        f"{root}/Dev Set/a/empty.png"
    )
    with pytest.raises(SystemExit):
        run_command(command, root, "--json", "--data=splits=train=train,test=Dev Set")
    found = json.loads(capsys.readouterr().out)
    assert found["used_for"] == {"train": "training", "test": "evaluation"}
    assert found["left_out"] == {".xyz": 1, "hidden": 1}
    assert found["class_names"][:4] == ["a", "b", "c", "more 0"]
    assert found["splits"]["test"]["examples"] == 8


def test_reports_what_is_held_out(root, run_command, capsys):
    options = ["--data=splits=train=train", "--data=hold_out=0.3"]
    run_command(command, root, *options)
    lines = capsys.readouterr().out.splitlines()
    assert "train is for training; val is for evaluation, held out of train" in lines
    assert any(
        line.endswith("are held out for it (data.hold_out=0.3)") for line in lines
    )
    assert "not used, because data.splits does not name them: 'val'" in lines


@pytest.mark.parametrize(
    ("dataset", "kind", "splits"),
    [
        ("digits", "digits", {"train": 1437, "test": 360}),
        (f"{SETS}/tiny_digits", "tensorflow-datasets", {"train": 16, "test": 8}),
        (
            f"{SETS}/tiny_tags",
            "tensorflow-datasets",
            {"train": 6, "train[:90%]": 5, "train[90%:]": 1},
        ),
    ],
)
def test_reports_other_kinds(dataset, kind, splits, run_command, capsys):
    run_command(command, dataset, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == kind
    assert {name: of["examples"] for name, of in found["splits"].items()} == splits
    assert sum("first" in of for of in found["splits"].values()) == 2
    assert found["multi_label"] == ("tags" in dataset)
    assert found["held_out"] == ("tags" in dataset)
    counted = sum("smallest" in of for of in found["splits"].values())
    assert counted == (0 if found["multi_label"] else 2)


def test_digits_match_their_own_preset(run_command, capsys):
    run_command(command, "digits", "--like=digits", "--json")
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_decodes_one_image_per_split_and_a_sample(root, monkeypatch):
    opened = []

    def counted(data, channels, name, *more):
        opened.append(name)
        return decode.open_image(data, channels, name, *more)

    monkeypatch.setattr(preprocessing, "open_image", counted)
    monkeypatch.setattr(suspicious, "_SAMPLED", 3)
    check(str(root))
    assert len(opened) == 2 + 2 * 3


def test_slow_labels_are_not_counted(monkeypatch):
    monkeypatch.setattr(tfds_sets, "_LONG_TO_READ", 6000)
    report = check(f"{SETS}/tiny_digits")
    assert list(report.class_counts) == ["test"]


def test_undecodable_image_is_a_problem(root, run_command, capsys):
    for path in (root / "val").glob("*/*"):
        path.write_bytes(b"x")
    with pytest.raises(SystemExit) as exit_:
        run_command(command, root)
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert "missing or wrong: " in out
    assert "png cannot be decoded" in out
    assert re.search(r"wrong: \d+ more of the sampled images cannot be read: ", out)


@pytest.fixture
def imagenet_root(tmp_path, monkeypatch):
    """Four classes; the preset expects two training images and one validation image."""
    names = imagenet.class_names()[:4]
    monkeypatch.setattr(imagenet, "class_names", lambda: names)
    monkeypatch.setitem(check_module._SMALLEST, "imagenet2012", (2, 1))
    preset = dataclasses.replace(
        PRESETS["imagenet2012"],
        num_classes=4,
        num_examples={"train": 8, "validation": 4},
    )
    monkeypatch.setitem(PRESETS, "imagenet2012", preset)
    for name in names:
        for k in range(2):
            write(tmp_path / "train" / name / f"{name}_{k}.JPEG")
        write(tmp_path / "val" / name / "ILSVRC2012_val_1.JPEG")
    return tmp_path


def problems(root):
    return check(str(root), like="imagenet2012").problems


def test_complete_copy_has_no_problems(imagenet_root, run_command):
    assert problems(imagenet_root) == []
    run_command(command, imagenet_root, "--like=imagenet2012")


def test_incomplete_copy_lists_its_problems(imagenet_root, run_command, capsys):
    names = imagenet.class_names()
    (imagenet_root / "train" / names[1] / f"{names[1]}_0.JPEG").unlink()
    (imagenet_root / "val" / names[2] / "ILSVRC2012_val_1.JPEG").unlink()
    (imagenet_root / "train" / names[3]).rename(imagenet_root / "train" / "other")
    found = problems(imagenet_root)
    assert (
        f"val has classes that {imagenet_root}/train does not have: '{names[3]}'"
        in found[0]
    )
    assert found[1:] == [
        "1 unknown class(es): other",
        "train: 7 examples, 1 too few; imagenet2012 has 8",
        "train: 2 class(es) with fewer than 2 examples: "
        f"{names[1]} (1), {names[3]} (0)",
        "val: 3 examples, 1 too few; imagenet2012 has 4",
        f"val: 2 class(es) with fewer than 1 examples: {names[2]} (0), other (0)",
    ]
    with pytest.raises(SystemExit) as exit_:
        run_command(command, imagenet_root, "--like=imagenet2012", "--json")
    assert exit_.value.code == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 6


def test_missing_evaluation_split_is_a_problem(imagenet_root, tmp_path_factory):
    (imagenet_root / "val").rename(tmp_path_factory.mktemp("elsewhere") / "val")
    (found,) = problems(imagenet_root)
    assert found.startswith("nothing to evaluate on (imagenet2012 has validation)")


def test_long_lists_of_missing_classes_are_shortened(imagenet_root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    names = imagenet.class_names()
    for split in ("train", "val"):
        (imagenet_root / split / names[0]).rename(elsewhere / split)
        for k in range(12):
            write(imagenet_root / split / f"more{k:02d}" / "x.png")
    found = problems(imagenet_root)
    assert found[0] == f"1 missing class(es): {names[0]}"
    assert found[1].startswith("12 unknown class(es): more00, more01,")
    assert found[1].endswith("more09, … and 2 more")
    assert found[2] == "train: 18 examples, 10 too many; imagenet2012 has 8"


def test_preset_without_class_names_is_compared_by_number(root):
    found = check(str(root), like="cifar10").problems
    assert found[0] == "3 classes; cifar10 has 10"
    assert found[1] == "train: 10 examples, 49,990 too few; cifar10 has 50,000"


def test_wrong_arguments(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets, "tensorflow_is_installed", lambda: True)
    for arguments, message in (
        ((), "found 0 data sets, expected one"),
        (("a", "b"), "found 2 data sets, expected one"),
        (("digits", "--like=imagenet"), "--like=imagenet: expected one of digits, cif"),
        ((tmp_path / "gone",), "there is no folder"),
        # A set is never prepared just to be checked.
        (
            ("cifar10", f"--data_dir={tmp_path}"),
            "the dataset 'cifar10' is not prepared",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run_command(command, *arguments)
    with pytest.raises(UserError):
        check("")


def test_names_that_are_not_utf8(root, run_command, capsys):
    for path in [*(root / "train").glob("*/*.png"), *(root / "val").glob("*/*.png")]:
        path.rename(path.with_name(f"\udcff{path.name}"))
    run_command(command, root)
    assert r"\udcff" in capsys.readouterr().out
    assert np.asarray(check(str(root)).class_counts["train"]).tolist() == [3, 5, 2]


def test_evaluation_split_alone(tmp_path):
    for name in ("n01440764", "n01443537"):
        path = tmp_path / "val" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
    report = check(str(tmp_path), like="imagenet2012")
    assert report.num_examples == {"val": 2}
    assert report.first["val"][1:] == (4, 5)
    assert "nothing to train on (imagenet2012 has train)" in report.problems
    assert any("val: 2 examples, 49,998 too few" in line for line in report.problems)
