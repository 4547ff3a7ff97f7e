"""Tests of folders with tables: of splits, Hugging Face's, and beside class folders."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
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
    if ending == "csv":  # absolute paths are found too
        for split in ("train", "test"):
            file = root / split / "metadata.csv"
            text = file.read_text().replace("\n", f"\n{root}/{split}/")
            file.write_text(text)
        assert opened(root)[1] == found
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


@pytest.mark.parametrize("options", [{}, {"label_columns": "label"}])
def test_a_test_table_of_other_columns_is_no_obstacle(root, opened, options):
    write(root / "train.csv")
    (root / "test.csv").write_text("Width,size\n4,4\n,\n")
    listing, found = opened(root, **options)
    assert found["train"] | found["val"] == ALL
    assert "the split test has no labels: its 1 row(s) are left out" in listing.remarks


@pytest.mark.parametrize(
    "folders",
    [
        ("images_001", "images_002"), ("HAM_images_part_1", "HAM_images_part_2"),
        ("images", "masks"), ("images", "img"),
    ],
)  # fmt: skip
def test_folders_of_images_are_not_classes(root, opened, folders):
    for folder in folders:
        (root / folder).mkdir(exist_ok=True)
    lines = []
    for k in range(12):
        folder = folders[k % 2]
        if folder != "images":
            (root / "images" / f"{k}.png").rename(root / folder / f"{k}.png")
        lines.append(f"{folder}/{k}.png,{ALL[k]}")
    if "images" not in folders:
        (root / "images").rmdir()
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))
    listing, found = opened(root)
    assert found["train"] | found["val"] == ALL
    assert (
        f"{root} has both labels.csv and folders of images: labels.csv gave the labels"
        in listing.remarks[0]
    )
    classes = opened(root, kind="image folder", splits="none")[0].class_names
    assert classes == tuple(sorted(folders))


@pytest.mark.parametrize(
    "folders", [("class_1", "class_2"), ("0", "1"), ("new", "old")]
)
def test_numbered_classes_are_classes(root, folders):
    for folder in folders:
        (root / folder).mkdir()
        shutil.copy(root / "images" / "0.png", root / folder)
    write(root / "labels.csv")
    assert kind(root) == "image folder"


def test_tables_are_chosen_by_data_splits(root, opened, message):
    for fold in range(2):
        write(root / f"fold{fold}_train.csv", range(4 - 4 * fold, 12 - 4 * fold))
        write(root / f"fold{fold}_val.csv", range(8 * fold, 8 * fold + 4))
    found = message(root)
    assert "has both fold0_train.csv and fold1_train.csv" in found
    assert "data.splits='train=fold0_train.csv'" in found
    options = {"splits": "train=fold0_train.csv,val=fold0_val.csv"}
    assert opened(root, **options)[1] == SPLITS
    # What such a table says itself about splits has to agree.
    file = root / "fold0_val.csv"
    file.write_text(
        file.read_text().replace("\n", ",other\n").replace("other", "split", 1)
    )
    assert "line 2: unknown split 'other'" in message(root, **options)


def test_two_tables_of_metadata_are_ambiguous(root, opened, message):
    write(root / "metadata.csv")
    (root / "metadata.jsonl").write_text('{"image": "images/0.png", "label": "x"}')
    assert "has both metadata.csv and metadata.jsonl. Name the one to use" in (
        message(root)
    )
    found = opened(root / "metadata.csv")[1]
    assert found["train"] | found["val"] == ALL


def test_tables_of_labels_and_of_patients_are_ambiguous(root, message):
    write(root / "ISIC_Training_GroundTruth.csv")
    write(root / "ISIC_Training_Metadata.csv", header="image,age")
    assert "has several tables: ISIC_Training_GroundTruth.csv, ISIC" in message(root)


def parquet(path, numbers):
    """Writes a Parquet table of some images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [f"{k}.png" for k in numbers],
        "label": [ALL[k] for k in numbers],
    }
    pq.write_table(pa.table(columns), path)


def test_series_of_parquet_files_are_complete(root, opened, message):
    for number in range(3):
        parquet(
            root / "data" / f"train-0000{number}-of-00003.parquet",
            range(3 * number, 3 * number + 3),
        )
    parquet(root / "data" / "test-00000-of-00001.parquet", range(9, 12))
    found = opened(root, image_root=str(root / "images"))[1]
    assert found["train"] == {k: ALL[k] for k in range(9)}
    (root / "data" / "train-00001-of-00003.parquet").unlink()
    assert "has 2 of 3 files of the series train-…-of-00003: complete it" in (
        message(root)
    )


def test_two_sets_of_parquet_files_are_not_one(root, opened, message):
    for name in ("large", "small"):
        for split, numbers in (("train", range(4, 12)), ("validation", range(4))):
            parquet(root / name / f"{split}.parquet", numbers)
    assert "has Parquet files of train in several folders: large, small" in (
        message(root)
    )
    found = opened(root / "small", image_root=str(root / "images"))[1]
    assert [*found.values()] == [*SPLITS.values()]


def test_parquet_files_in_folders_of_splits_are_one_set(root, opened):
    for split, numbers in (("train", range(4, 12)), ("test", range(4))):
        for k in numbers:
            parquet(root / "default" / split / f"{k:04}.parquet", [k])
    found = opened(root, image_root=str(root / "images"))[1]
    assert [*found.values()] == [*SPLITS.values()]


def test_a_table_in_the_folder_of_each_split(root, opened, message):
    for split, numbers in (("train", range(4, 12)), ("valid", range(4))):
        (root / split).mkdir()
        lines = ["filename, a, b"]
        for k in numbers:
            (root / "images" / f"{k}.png").rename(root / split / f"{k}.png")
            lines.append(f"{k}.png, {k % 2 == 0:d}, {k % 2:d}")
        (root / split / "_classes.csv").write_text("\n".join(lines))
        (root / split / "notes.csv").write_text("who,what\nI,wrote\n")
    (root / "images").rmdir()
    assert [*opened(root)[1].values()] == [*SPLITS.values()]
    # Of two, neither is taken.
    shutil.copy(root / "train" / "_classes.csv", root / "train" / "old.csv")
    assert "no images of any class" in message(root)


def test_files_that_are_not_read_are_named(root, opened):
    write(root / "train.csv")
    for name in ("sample_submission.csv", "folds.json", "arrays.npz"):
        (root / name).write_text("id,label\n")
    assert (
        "labels are those of train.csv; not read: arrays.npz, folds.json, "
        "sample_submission.csv"
    ) in opened(root)[0].remarks
    assert not any("not read" in one for one in opened(root / "train.csv")[0].remarks)
