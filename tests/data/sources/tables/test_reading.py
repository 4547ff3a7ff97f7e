"""Tests of tables of images: columns, labels, weights, splits, and errors."""

import csv
import json
import os

import pytest

from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError


def write(path, rows):
    """Writes rows, which are dicts; the first one's keys are the columns."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
            writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def rows(count=12, column="image", **columns):
    """Makes rows; each of `columns` is a function of the row's number."""
    return [
        {column: f"images/{k}.png", **{name: of(k) for name, of in columns.items()}}
        for k in range(count)
    ]


def examples(dataset, split=""):
    source = open_dataset(dataset).split(split)
    return {
        os.path.basename(one.name): one
        for one in (source[i] for i in range(len(source)))
    }


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".CSV"])
@pytest.mark.parametrize("column", ["image", "path", "file", "filename"])
def test_every_format_and_name_of_the_path(root, extension, column):
    listed = rows(
        column=column,
        id=lambda k: k,
        label=lambda k: "ab"[k % 2],
        split=lambda k: "val" if k < 4 else "train",
    )
    dataset = write(root / f"set{extension.lower()}", listed)
    os.rename(dataset, root / f"set{extension}")
    dataset = str(root / f"set{extension}")
    info = open_dataset(dataset).info.with_splits()
    assert info.num_examples == {"train": 8, "val": 4}
    assert (info.class_names, info.multi_label) == (("a", "b"), False)
    found = examples(dataset, "val")
    assert {name: one.label for name, one in found.items()} == {
        f"{k}.png": k % 2 for k in range(4)
    }
    assert found["3.png"].name == str(root / "images" / "3.png")
    assert decode(found["3.png"].image)[0, 0].tolist() == [3, 3, 3]
    source = open_dataset(dataset).split()
    assert source.labels().tolist() == [source[i].label for i in range(8)]
    assert open_dataset(os.path.relpath(dataset)).location == dataset


def test_weights(root):
    for extension in (".csv", ".jsonl"):
        listed = rows(label=lambda k: k % 2, weight=lambda k: k / 4)
        dataset = write(root / f"set{extension}", listed)
        for split in ("train", "val"):
            source = open_dataset(dataset).split(split)
            numbers = [int(os.path.basename(one.name)[:-4]) for one in source]
            assert source.weights().tolist() == [k / 4 for k in numbers]
            assert [one.weight for one in source] == source.weights().tolist()
            assert source.labels().tolist() == [k % 2 for k in numbers]


def test_several_labels(root):
    tags = [["sea", "sky"], [], ["sky"], ["tree", "sea"]]
    text = write(root / "t.csv", rows(labels=lambda k: "|".join(tags[k % 4])))
    lists = write(root / "t.jsonl", rows(labels=lambda k: tags[k % 4]))
    for dataset in (text, lists):
        info = open_dataset(dataset).info.with_splits()
        assert info.multi_label
        assert info.class_names == ("sea", "sky", "tree")
        found = examples(dataset, "train") | examples(dataset, "val")
        assert [found[f"{k}.png"].label for k in range(4)] == [(0, 1), (), (1,), (2, 0)]
        source = open_dataset(dataset).split("train+val")
        with pytest.raises(UserError, match="may have several labels"):
            source.labels()
        preprocessing = Preprocessing((4, 4))
        with eval_batches(
            source, batch_size=12, preprocessing=preprocessing
        ) as batches:
            labels = next(batches)["label"]
        assert labels.sum() == 15
        assert labels.shape == (12, 3)


def test_rare_labels_may_be_held_out(root):
    dataset = write(root / "t.csv", rows(labels=lambda k: f"all|{k}"))
    info = open_dataset(dataset).info.with_splits()
    assert info.class_names == (*sorted(map(str, range(12)), key=str), "all")
    assert 1 <= info.num_examples["val"] <= 5
    listed = rows(labels=str, split=lambda k: "train" if k < 6 else "test")
    assert open_dataset(write(root / "u.csv", listed)).info.num_classes == 12


def test_integer_labels_are_ordered_as_numbers(root):
    for extension in (".csv", ".jsonl"):
        listed = rows(label=lambda k: 120 - 10 * k) * 2
        dataset = write(root / f"set{extension}", [*listed, listed[0] | {"image": "x"}])
        names = open_dataset(dataset).info.class_names
        assert names == tuple(str(10 * k) for k in range(1, 13))
    listed = rows(label=lambda k: k or "none")
    dataset = write(root / "mixed.csv", [*listed, listed[0] | {"image": "x"}])
    assert open_dataset(dataset).info.class_names[:4] == ("1", "10", "11", "2")


def test_held_out_tenth_does_not_depend_on_format_or_order(root):
    many = [{"image": f"images/{k % 12}.png?{k}", "label": k % 3} for k in range(300)]
    many[0]["image"], many[299]["image"] = "images/0.png", "images/1.png"
    listings = []
    for name, listed in (("a.csv", many), ("b.jsonl", many[::-1])):
        source = open_dataset(write(root / name, listed)).split("val")
        listings.append([source.listing.files["val"][i] for i in range(len(source))])
        assert 10 <= len(source) <= 60
    assert listings[0] == listings[1]


def test_the_same_image_twice_stays_on_one_side(root):
    listed = [row for row in rows(label=lambda k: k % 2) for _ in range(3)]
    dataset = write(root / "set.csv", listed)
    train, val = (open_dataset(dataset).split(split) for split in ("train", "val"))
    assert len(train) + len(val) == 36
    assert not {one.name for one in train} & {one.name for one in val}


@pytest.mark.parametrize("evaluation", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl"])
def test_a_folder_with_a_table_for_each_split(root, evaluation, extension):
    listed = rows(label=lambda k: "ab"[k % 2])
    write(root / f"train{extension}", listed[:8])
    # A split column may repeat the split that the file's name gives.
    for row in listed[8:]:
        row["split"] = evaluation
    write(root / f"{evaluation}{extension}", listed[8:])
    dataset = str(root)
    info = open_dataset(dataset).info
    assert info.with_splits().num_examples == {"train": 8, evaluation: 4}
    assert (info.train_split, info.eval_split) == ("train", evaluation)
    assert set(examples(dataset, evaluation)) == {f"{k}.png" for k in range(8, 12)}


def test_val_is_preferred_and_all_splits_are_there(root):
    splits = ["train"] * 8 + ["test", "val", "test", "validation"]
    dataset = write(
        root / "s.csv", rows(label=lambda k: k % 2, split=splits.__getitem__)
    )
    info = open_dataset(dataset).info
    assert (info.train_split, info.eval_split) == ("train", "val")
    assert info.with_splits("train", "test").num_examples == {"train": 8, "test": 2}


def test_absolute_paths_and_a_byte_order_mark(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "set.csv"
    lines = ["Image , LABEL", *(f"{root}/images/{k}.png,{k % 2}" for k in range(12))]
    elsewhere.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    assert open_dataset(str(elsewhere)).info.class_names == ("0", "1")
    assert decode(open_dataset(str(elsewhere)).split()[0].image).shape == (4, 4, 3)


def test_changed_table_is_read_again(root):
    dataset = write(root / "set.csv", rows(label=lambda k: k % 2))
    assert open_dataset(dataset).info.num_classes == 2
    write(root / "set.csv", rows(label=lambda k: k % 4))
    assert open_dataset(dataset).info.num_classes == 4


def test_all_bad_rows_are_listed(root, message):
    path = root / "set.csv"
    path.write_text(
        "image,label,weight,split\n"
        "images/0.png,a,1,train\n"
        "images/1.png,,1,train\n"
        ",b,1,val\n"
        "images/3.png,b,heavy,train\n"
        "images/4.png,b,-1,train\n"
        "images/5.png,b,nan,later\n"
        "images/6.png,b\n"
        "images/7.png,b,1,val\n",
        encoding="utf-8",
    )
    lines = message(path).splitlines()
    assert lines[0] == "the table has 6 problem(s):"
    assert [line.strip() for line in lines[1:-1]] == [
        "set.csv, line 3: empty label",
        "set.csv, line 4: empty path",
        "set.csv, line 5: weight is 'heavy', not a number of at least 0",
        "set.csv, line 6: weight is '-1', not a number of at least 0",
        "set.csv, line 7: weight is 'nan', not a number of at least 0; "
        "unknown split 'later'",
        "set.csv, line 8: 2 cells, but 4 columns",
    ]
    assert lines[-1].startswith("Expected columns: image, path, file or filename")


def test_ten_of_many_bad_rows_are_shown(root, message):
    dataset = write(root / "set.tsv", rows() * 200)
    found = message(dataset)
    assert (
        "no column for the label: expected one of label, labels, or its name in "
        "data.label_columns; found 'image'" in found
    )
    dataset = write(root / "set.tsv", rows(label=lambda k: " ") * 200)
    lines = message(dataset).splitlines()
    assert lines[0].startswith("the table has 2,400 problem(s)")
    assert lines[10] == "  set.tsv, line 11: empty label"
    assert lines[11] == "  … and 2,390 more"


def test_both_tables_of_a_folder_are_checked_together(root, message):
    write(root / "train.csv", rows(label=lambda k: "" if k == 2 else "ab"[k % 2]))
    write(root / "test.csv", rows(label=lambda k: "a", split=lambda k: "val"))
    found = message(root)
    assert "train.csv, line 4: empty label" in found
    assert "test.csv, line 2: split is 'val' in the table of split 'test'" in found
    write(root / "test.csv", rows(labels=lambda k: "a"))
    write(root / "train.csv", rows(label=lambda k: "ab"[k % 2]))
    assert "some tables have a column label, others labels" in message(root)
    write(root / "test.csv", rows(label=lambda k: "abx"[k % 3]))
    assert "classes to evaluate on that are not trained on: 'x'" in message(root)
    write(root / "train.jsonl", rows(label=lambda k: "ab"[k % 2]))
    assert "has both train.csv and train.jsonl" in message(root)


def test_bad_json(root, message):
    path = root / "set.jsonl"
    good = '{"image": "images/0.png", "label": "a"}\n'
    path.write_text(
        "{\n"
        + good
        + "[1]\n"
        + "\n"
        + good.replace('"a"', "true")
        + good.replace('"a"', "1.5")
        + good.replace('"a"', "null")
        + good.replace('"images/0.png"', "7")
        + good.replace("}", ', "weight": 2}')
        + '{"label": "b"}\n'
        + "[" * 100_000
    )
    found = message(path)
    for line, problem in {
        1: "not a JSON object (Expecting property name",
        3: "not a JSON object",
        5: "label is True, not a string or a whole number",
        6: "label is 1.5, not a string or a whole number",
        7: "empty label",
        8: "path is 7, not a string",
        9: "weight, which the first row does not have",
        10: "empty path",
        11: "not a JSON object (",
    }.items():
        assert f"set.jsonl, line {line}: {problem}" in found
    path.write_text('{"image": "images/0.png", "labels": "a|b"}\n')
    assert "line 1" not in message(path)
    path.write_text('{"image": "images/0.png", "labels": {"a": 1}}\n')
    assert "labels is {'a': 1}, not a list" in message(path)


def test_errors_describe_the_table(root, tmp_path, message):
    assert "the table" in message(root / "gone.csv")
    assert "gone.csv cannot be read: No such file" in message(root / "gone.csv")
    path = root / "set.csv"
    path.write_text("")
    assert "no column for the path" in message(path)
    path.write_text("image,label\n")
    assert "set.csv: no rows" in message(path)
    path.write_text("image,path,label,label\na,b,c,d\n")
    found = message(path)
    assert "2 columns for the path" in found
    assert "2 columns for the label" in found
    path.write_text("image:label\nimages/0.png:a\n")
    assert "found 'image:label'" in message(path)
    path.write_bytes("image,label\nimages/0.png,Bär\n".encode("latin-1"))
    assert "is not UTF-8 text" in message(path)
    path.write_text("image,label\n" + "x" * 200_000 + ",a\n")
    assert "field larger than field limit" in message(path)
    write(path, rows(label=lambda k: "a"))
    assert "found 1 class(es) ('a')" in message(path)
    write(path, rows(labels=lambda k: ""))
    assert "found 0 class(es) in the table" in message(path)
    write(path, rows(label=lambda k: k % 2, split=lambda k: "val"))
    assert "has no row to train on, only val" in message(path)
    write(path, rows(2, label=lambda k: k))
    assert "too few to hold one out" in message(path)
    (root / "folder.csv").mkdir()
    assert "no images of any class" in message(root / "folder.csv")


def test_a_missing_file_is_found_when_it_is_read(root):
    dataset = write(root / "set.csv", rows(label=lambda k: k % 2))
    source = open_dataset(dataset).split()
    os.remove(source[0].name)
    with pytest.raises(DecodeError, match=r"png cannot be read: No such file"):
        source[0]
    open_dataset(dataset).info.with_splits()


def test_wrong_paths_are_reported_when_the_table_is_read(root, message):
    listed = [{"image": f"x/{k}.png", "label": k % 2} for k in range(300)]
    dataset = write(root / "set.csv", listed)
    found = message(dataset)
    assert "none of the first 100 images of the table" in found
    assert f"expected at {root / 'x' / '0.png'}" in found
    listed[99]["image"] = "images/0.png"
    write(root / "set.csv", listed)
    open_dataset(dataset).info.with_splits()
    (root / "images").rename(root / "moved")
    write(root / "set.csv", listed[:12])
    assert "none of the first 12 images" in message(dataset)
