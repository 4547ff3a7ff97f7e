"""Tests of the columns of splits: names, values, flags, and `data.splits`."""

import pytest

ALL = {k: "ab"[k % 2] for k in range(12)}
SPLIT = ({k: ALL[k] for k in range(4, 12)}, {k: ALL[k] for k in range(4)})


def write(path, header, row):
    path.write_text("\n".join([header, *map(row, range(12))]) + "\n")
    return path


def table(root, column, values, label="label"):
    """Writes a table in which the first images have the first of some values."""
    of = [value for value, count in values for _ in range(count)]
    return write(
        root / "t.csv",
        f"image,{label},{column}",
        lambda k: f"images/{k}.png,{ALL[k]},{of[k]}",
    )


@pytest.mark.parametrize("column", ["Dataset_type", "which", "x"])
def test_a_column_of_any_name_whose_values_are_all_splits(root, opened, column):
    path = table(root, column, [("TEST", 4), ("Train", 8)])
    listing, found = opened(path)
    assert (found["test"], found["train"]) == SPLIT[::-1]
    assert f"the column '{column}' gives the splits" in listing.remarks[0]
    assert opened(path, split_column="none")[0].held_out
    # Runs that were begun before did not look at it.
    assert opened(path, rules=1)[0].held_out


@pytest.mark.parametrize(
    "values",
    [
        [("train", 12)],
        [("test", 4), ("val", 8)],
        [("train", 4), ("", 8)],
        [("train", 11), ("station", 1)],
        [("train", 4), ("bullet train", 8)],
    ],
)
def test_other_columns_are_not_of_splits(root, opened, values):
    listing, _ = opened(table(root, "what", values))
    assert listing.held_out
    assert not any("'what' gives the splits" in remark for remark in listing.remarks)


def test_a_column_of_labels_is_not_of_splits(root, opened):
    path = write(
        root / "t.csv",
        "image,what,class",
        lambda k: f"images/{k}.png,x,{('train', 'test')[k % 2]}",
    )
    assert opened(path)[0].class_names == ("test", "train")
    assert opened(path)[0].held_out
    path = write(
        root / "t.csv",
        "image,what",
        lambda k: f"images/{k}.png,{['train', 'dev'][k % 2]}",
    )
    assert opened(path, label_columns="what")[0].class_names == ("dev", "train")


def test_two_columns_of_splits_stop(root, message, opened):
    path = write(
        root / "t.csv",
        "image,label,first,second",
        lambda k: (
            f"images/{k}.png,{ALL[k]},{'test' if k < 4 else 'train'},"
            f"{'train' if k < 4 else 'test'}"
        ),
    )
    assert "2 columns for the split (first, second): set data.split_column" in (
        message(path)
    )
    assert opened(path, split_column="first")[1]["test"] == SPLIT[1]


@pytest.mark.parametrize(
    ("column", "split", "ones"),
    [
        ("is_valid", "val", 4), ("Is Test", "test", 4), ("is_val", "val", 4),
        ("in_validation", "val", 4), ("is_train", "train", 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of", [("0", "1"), ("False", "True")])
def test_flags(root, opened, column, split, ones, of):
    one = [(of[1], 4), (of[0], 8)] if split != "train" else [(of[0], 4), (of[1], 8)]
    listing, found = opened(table(root, column, one))
    held_out = "val" if split == "train" else split
    assert (found["train"], found[held_out]) == SPLIT
    assert (
        f"a one in the column {column!r} means the split {split!r}"
        in (listing.remarks[0])
    )
    assert opened(table(root, column, one), split_column=column)[1] == found
    assert opened(table(root, column, one), split_column="none")[0].held_out


def test_two_flags(root, opened, message):
    def rows(k, valid=range(2), test=range(2, 4)):
        return f"images/{k}.png,{ALL[k]},{k in valid:d},{k in test:d}"

    path = write(root / "t.csv", "image,label,is_valid,is_test", rows)
    _, found = opened(path)
    assert {split: set(some) for split, some in found.items()} == {
        "train": set(range(4, 12)), "val": {0, 1}, "test": {2, 3},
    }  # fmt: skip
    write(path, "image,label,is_valid,is_test", lambda k: rows(k, range(3)))
    assert "line 4: is_valid and is_test give it several splits" in message(path)
    write(path, "image,label,is_train,is_test", rows)
    assert "line 6: is_train and is_test give it no split" in message(path)


def test_flags_are_not_classes(root, opened):
    path = write(
        root / "t.csv",
        "image,a,b,is_valid",
        lambda k: f"images/{k}.png,{1 - k % 2},{k % 2},{k < 4:d}",
    )
    listing, found = opened(path)
    assert (listing.class_names, listing.multi_label) == (("a", "b"), False)
    assert (found["train"], found["val"]) == SPLIT
    assert opened(path, split_column="none")[0].class_names == ("a", "b")


def test_trains_are_classes_beside_other_vehicles(root, opened):
    path = write(
        root / "t.csv",
        "image,is_train,is_bus,is_car",
        lambda k: f"images/{k}.png,{k % 3 == 0:d},{k % 3 == 1:d},{k % 3 == 2:d}",
    )
    for options in ({}, {"label_columns": "is_*"}):
        listing, found = opened(path, **options)
        assert listing.class_names == ("is_bus", "is_car", "is_train")
        assert listing.held_out
        labels = found["train"] | found["val"]
        assert labels == {k: ("is_train", "is_bus", "is_car")[k % 3] for k in range(12)}


def test_values_that_splits_does_not_name_are_left_out(root, opened, message):
    values = [("1", 4), ("0", 6), ("", 1), ("UNASSIGNED", 1)]
    path = table(root, "split", values)
    assert "line 2: unknown split '1'" in message(path)
    listing, found = opened(path, splits="train=0,val=1")
    assert found == {"train": {k: ALL[k] for k in range(4, 10)}, "val": SPLIT[1]}
    assert (
        "2 row(s) are not used, because data.splits does not name their split: "
        "'' (1), 'UNASSIGNED' (1)"
    ) in listing.remarks
    # What else is in such a row does not matter.
    path.write_text(path.read_text().replace(f"11.png,{ALL[11]}", "11.png,"))
    assert opened(path, splits="train=0,val=1")[1] == found


def test_folds(root, opened):
    path = write(
        root / "t.csv",
        "image,label,fold",
        lambda k: f"images/{k}.png,{ALL[k]},{k // 4}",
    )
    assert opened(path)[0].held_out
    options = {"split_column": "fold", "splits": "val=0,train=1,train=2"}
    _, found = opened(path, **options)
    assert (found["train"], found["val"]) == SPLIT


def test_a_value_that_no_row_has_is_an_error(root, message):
    path = table(root, "split", [("B", 4), ("A", 8)])
    assert "data.splits='train=A,val=C': no row has 'C'" in (
        message(path, splits="train=A,val=C")
    )


def test_two_values_for_one_split_are_ambiguous(root, opened, message):
    path = table(root, "Usage", [("PublicTest", 2), ("PrivateTest", 2), ("Train", 8)])
    found = message(path)
    assert "could be the split test: 'PublicTest', 'PrivateTest'" in found
    assert "data.splits='test=PublicTest,test=PrivateTest'" in found
    options = {"splits": "train=Train,val=PublicTest,test=PrivateTest"}
    found = opened(path, **options)[1]
    assert {split: set(some) for split, some in found.items()} == {
        "train": set(range(4, 12)), "val": {0, 1}, "test": {2, 3},
    }  # fmt: skip
    # Other spellings of one name are one value.
    path = table(root, "split", [("Dev ", 2), ("dev", 2), ("TRAIN", 4), ("train", 4)])
    assert (opened(path)[1]["train"], opened(path)[1]["val"]) == SPLIT


def test_numbered_splits_are_remarked_on(root, opened):
    path = table(root, "partition", [("2", 2), ("1", 2), ("0", 8)])
    listing, _ = opened(path)
    assert listing.held_out
    assert (
        "the column 'partition' is not used: its values 0, 1, 2 are no names"
        in (listing.remarks[0])
    )
    assert "data.splits, as in 'train=0,val=1,test=2'" in listing.remarks[0]
    options = {"split_column": "partition", "splits": "train=0,val=1,test=2"}
    assert opened(path, **options)[1]["train"] == SPLIT[0]
    write(path, "image,label,set", lambda k: f"images/{k}.png,{ALL[k]},{k}")
    assert not any("is not used" in remark for remark in opened(path)[0].remarks)
