"""Tests of columns that may hold several labels per row, and of those that seem to."""

ALL = {k: "ab"[k % 2] for k in range(12)}


def write(path, header, row):
    """Writes one row per number; `row` returns the cells, joined by commas."""
    path.write_text("\n".join([header, *map(row, range(12))]) + "\n")
    return path


def merged(found):
    return {number: label for some in found.values() for number, label in some.items()}


def test_several_labels_in_a_column_called_label(root, opened):
    path = write(root / "t.csv", "image,label", lambda k: f"images/{k}.png,x|{ALL[k]}")
    listing, _ = opened(path)
    assert listing.class_names == ("x|a", "x|b")
    assert "cells of 'label' look like several labels" in listing.remarks[0]
    listing, found = opened(path, label_columns="label")
    assert (listing.class_names, listing.multi_label) == (("a", "b", "x"), True)
    assert merged(found) == {k: f"x|{ALL[k]}" for k in range(12)}
    write(path, "image,label", lambda k: f"images/{k}.png,{ALL[k]}")
    assert not opened(path, label_columns="label")[0].multi_label


def test_one_label_each_where_there_could_be_several_is_remarked_on(root, opened):
    path = write(root / "t.csv", "image,labels", lambda k: f"images/{k}.png,{ALL[k]}")
    assert any("each image has one label" in one for one in opened(path)[0].remarks)
    listing, _ = opened(path, label_columns="labels")
    assert not any("each image has one" in one for one in listing.remarks)


def test_labels_joined_by_blanks_are_suspected(root, opened):
    names = ("scab", "healthy", "scab frog_eye", "frog_eye rust", "rust")
    path = write(
        root / "t.csv", "image,labels", lambda k: f"images/{k}.png,{names[k % 5]}"
    )
    assert any(
        "but 4 have ' ': if it separates labels, set data.label_separator=' '" in one
        for one in opened(path)[0].remarks
    )
    listing, found = opened(path, label_separator=" ")
    assert listing.class_names == ("frog_eye", "healthy", "rust", "scab")
    assert merged(found)[2] == "scab|frog_eye"
    names = ("golden retriever", "sea lion", "cat", "dog", "cow")
    write(path, "image,labels", lambda k: f"images/{k}.png,{names[k % 5]}")
    assert not any("separator" in one for one in opened(path)[0].remarks)
