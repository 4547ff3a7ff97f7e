"""Tests of folders with tables: of splits, Hugging Face's, and beside class folders."""

import json
import os
import shutil

import pytest

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions

ALL = {k: "ab"[k % 2] for k in range(12)}
SPLITS = {
    "train": {k: ALL[k] for k in range(4, 12)},
    "val": {k: ALL[k] for k in range(4)},
}


def write(path, numbers=ALL, header="image,label", image="images/{}.png"):
    path.parent.mkdir(exist_ok=True)
    lines = [f"{image.format(k)},{ALL[k]}" for k in numbers]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def class_folders(root):
    for k, label in ALL.items():
        (root / label).mkdir(exist_ok=True)
        shutil.copy(root / "images" / f"{k}.png", root / label)
    shutil.rmtree(root / "images")


def kind(path, **options):
    return open_dataset(str(path), "", DataOptions(**options)).kind


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train.csv", "VAL.csv"),
        ("training.tsv", "dev.csv"),
        ("train_labels.csv", "validation-labels.csv"),
        ("labels_train.csv", "annotations_val.csv"),
    ],
)
def test_tables_of_splits_under_their_usual_names(root, opened, train, val):
    write(root / train, range(4, 12))
    write(root / val, range(4))
    listing, found = opened(root)
    assert [*found.values()] == [*SPLITS.values()]
    assert kind(root) == "table"
    assert not listing.held_out


def test_plain_names_win(root, opened, message):
    write(root / "train.csv", range(4, 12))
    write(root / "val.csv", range(4))
    write(root / "train_labels.csv", range(2))
    assert opened(root)[1] == SPLITS
    (root / "train.csv").rename(root / "training.csv")
    assert "has both train_labels.csv and training.csv" in message(root)


def test_a_test_table_without_labels_is_left_out(root, opened):
    write(root / "train.csv")
    (root / "test.csv").write_text("image,size\nimages/1.png,4\n")
    (root / "sample_submission.csv").write_text("image,label\nimages/1.png,a\n")
    listing, found = opened(root)
    assert listing.held_out
    assert found["train"] | found["val"] == ALL
    assert "the split test has no labels: its 1 row(s) are left out" in listing.remarks


def test_the_only_table_for_training_is_taken(root, opened):
    write(root / "train.csv")
    write(root / "sample_submission.csv", range(2))
    write(root / "extra.csv", range(2))
    found = opened(root)[1]
    assert found["train"] | found["val"] == ALL


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_in_the_folder_of_each_split(root, opened, ending):
    for split, numbers in (("train", range(4, 12)), ("test", range(4))):
        (root / split).mkdir()
        rows = [
            {"file_name": f"{k}.png", "label": ALL[k], "text": "x"} for k in numbers
        ]
        for k in numbers:
            (root / "images" / f"{k}.png").rename(root / split / f"{k}.png")
        if ending == "csv":
            lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        else:
            lines = map(json.dumps, rows)
        (root / split / f"metadata.{ending}").write_text("\n".join(lines))
    (root / "images").rmdir()
    _, found = opened(root)
    assert found == {"train": SPLITS["train"], "test": SPLITS["val"]}
    assert kind(root) == "table"
    # Metadata at the top name the folders.
    lines = ["file_name,label"]
    lines += [f"{'train' if k > 3 else 'test'}/{k}.png,{ALL[k]}" for k in range(12)]
    (root / "metadata.csv").write_text("\n".join(lines))
    assert opened(root)[1] == found


@pytest.mark.parametrize("name", ["labels.csv", "anything.tsv", "metadata.jsonl"])
def test_one_table_beside_images(root, opened, name):
    write(root / name)
    if name.endswith("jsonl"):
        rows = [{"image": f"images/{k}.png", "label": ALL[k]} for k in ALL]
        (root / name).write_text("\n".join(map(json.dumps, rows)))
    (root / "notes.csv").write_text("who,what\nI,wrote\n")
    listing, found = opened(root)
    assert found["train"] | found["val"] == ALL
    assert listing.path == str(root)


def test_several_tables_beside_images_are_ambiguous(root, message):
    write(root / "new.csv")
    write(root / "old.csv")
    found = message(root)
    assert "has several tables: new.csv, old.csv. Name the one to use" in found


def test_a_table_beside_class_folders(root, opened):
    class_folders(root)
    other = {k: "xy"[k % 2] for k in range(12)}
    lines = [f"{ALL[k]}/{k}.png,{other[k]}" for k in other]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))
    listing, found = opened(root)
    assert kind(root) == "image folder"
    assert found["train"] | found["val"] == ALL
    assert listing.remarks[0] == (
        f"{root} has both labels.csv and folders of classes: the folders of classes "
        "gave the labels; data.kind='table' takes labels.csv instead"
    )
    listing, found = opened(root, kind="table")
    assert found["train"] | found["val"] == other
    assert not any("both" in remark for remark in listing.remarks)


@pytest.mark.parametrize(
    "folder", ["images_{:03}", "birds_images_part_{}", "train/images_{}"]
)
def test_folders_named_like_parts_are_no_classes_beside_a_table(root, opened, folder):
    for k in ALL:
        target = root / folder.format(k % 3)
        target.mkdir(exist_ok=True, parents=True)
        (root / "images" / f"{k}.png").rename(target / f"{k}.png")
    (root / "images").rmdir()
    image = f"{folder}/{{}}.png"
    lines = [f"{image.format(k % 3, k)},{ALL[k]}" for k in ALL]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))
    assert kind(root) == "table"
    listing, found = opened(root)
    assert found["train"] | found["val"] == ALL
    assert listing.class_names == ("a", "b")


def test_tables_of_splits_beside_class_folders(root, opened):
    class_folders(root)
    for split, numbers in (("train", range(4, 12)), ("val", range(4))):
        lines = [f"{ALL[k]}/{k}.png,{'xy'[k % 2]}" for k in numbers]
        (root / f"{split}.csv").write_text("\n".join(["file,label", *lines]))
    listing, _ = opened(root)
    assert listing.class_names == ("x", "y")
    assert (
        "train.csv, val.csv gave the labels; data.kind='image folder'"
        in (listing.remarks[0])
    )
    assert opened(root, kind="image folder")[0].class_names == ("a", "b")


def test_other_files_are_not_tables(root, opened):
    class_folders(root)
    (root / "statistics.csv").write_text("epoch,loss\n1,2\n")
    listing, _ = opened(root)
    assert listing.class_names == ("a", "b")
    assert not any("statistics" in remark for remark in listing.remarks)


def test_a_folder_without_a_table_is_explained(root, message):
    assert "has no table: expected one such as labels.csv" in message(
        root, kind="table"
    )


def test_runs_begun_before_find_the_tables_that_were_known_then(root):
    write(root / "labels.csv")
    assert kind(root) == "table"
    assert kind(root, rules=1) == "image folder"
    write(root / "train.csv", range(4, 12))
    write(root / "val.csv", range(4))
    assert kind(root, rules=1) == "table"


def test_folders_of_classes_are_not_searched_for_tables(tmp_path, monkeypatch):
    for number in range(20):
        for split in ("train", "val"):
            (tmp_path / split / str(number)).mkdir(parents=True)
            (tmp_path / split / str(number) / "a.jpg").touch()
    listed, scandir = [], os.scandir

    def counted(path):
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert kind(tmp_path) == "image folder"
    below = [str(tmp_path / split) for split in ("train", "val")]
    assert set(listed) == {str(tmp_path), *below}
