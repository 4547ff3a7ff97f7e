"""Tests of table files: delimiters, encodings, quotes, and files that are no text."""

import pytest

from vit_jax.data.sources.tables.columns import known
from vit_jax.data.sources.tables.files import normal, open_table
from vit_jax.errors import UserError

TRAIN = {k: "ab"[k % 2] for k in range(4, 12)}
VAL = {k: "ab"[k % 2] for k in range(4)}


def lines(delimiter=",", header=("image", "label", "split")):
    rows = [
        (f"images/{k}.png", "ab"[k % 2], "val" if k < 4 else "train") for k in range(12)
    ]
    return [delimiter.join(row) for row in (header, *rows)]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", "])
def test_the_header_decides_the_delimiter(root, opened, ending, delimiter):
    path = root / f"set{ending}"
    path.write_text("\n".join(lines(delimiter)))
    assert opened(path)[1] == {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("image,labels; notes", ["image", "labels; notes"]),
        ("image;label;price, in euros", ["image", "label", "price, in euros"]),
        ("image,what|where,label", ["image", "what|where", "label"]),
        ('"image";"label, of it"', ["image", "label, of it"]),
        ("image", ["image"]),
        ("image;label;", ["image", "label"]),
        ("sep=;\nimage;label", ["image", "label"]),
        ("\n\n image , label ", ["image", "label"]),
    ],
)
def test_columns(tmp_path, header, columns):
    path = tmp_path / "set.csv"
    path.write_text(header + "\n")
    assert open_table(str(path), known).columns == columns


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings(root, opened, encoding, newline):
    text = newline.join(lines()).replace(",a,", ",Bär,") + newline
    if encoding in ("utf-16-le", "utf-16-be"):
        text = "\ufeff" + text
    path = root / "set.csv"
    path.write_bytes(text.encode(encoding))
    listing, found = opened(path)
    assert listing.class_names == ("Bär", "b")
    assert found["val"] == {0: "Bär", 1: "b", 2: "Bär", 3: "b"}


def test_cells_in_quotes(root, opened):
    path = root / "set.csv"
    labels = ('a ""dog""', "cat, black")
    rows = [f'"images/{k}.png", "{labels[k % 2]}","two\nlines"' for k in range(12)]
    path.write_text("\n".join(["image,label,note", *rows]))
    listing, found = opened(path)
    assert listing.class_names == ('a "dog"', "cat, black")
    assert (found["train"] | found["val"])[1] == "cat, black"


def test_a_quote_that_is_never_closed_hides_no_rows(root, message):
    path = root / "set.csv"
    rows = lines()
    rows[3] = rows[3].replace(",a", ',"a')
    path.write_text("\n".join(rows))
    assert "the quote in line 4 is never closed" in message(path)
    # Closed by another stray one, it makes one row of several.
    rows[6] = rows[6].replace(",b", ',b"')
    path.write_text("\n".join(rows))
    assert "a quote missing?" in message(path) or "cells, but" in message(path)


@pytest.mark.parametrize("last", [False, True])
def test_quotes_at_the_start_of_a_cell_hide_no_rows(root, message, last):
    path = root / "set.tsv"
    rows = [row.split("\t") for row in lines("\t")]
    texts = ["note", *(f'"what {k}' for k in range(12))]
    rows = [
        [*row, text] if last else [row[0], text, *row[1:]]
        for row, text in zip(rows, texts, strict=True)
    ]
    path.write_text("\n".join(map("\t".join, rows)))
    assert "the quote in line 2 is not closed in that line" in message(path)


def test_empty_cells_at_the_end_of_a_line_do_not_matter(root, opened):
    path = root / "set.csv"
    rows = lines()
    path.write_text("\n".join([rows[0], *(f"{row},," for row in rows[1:])]))
    assert opened(path)[1] == {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04rest", "is an Excel workbook or a zip archive, not text"),
        (b"PAR1rest", "is a Parquet file, not text"),
        (b"\x1f\x8b\x08", "is a file compressed by gzip, not text"),
        ("image,label\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("image,label\na,ö\n".encode("latin-1"), "is not UTF-8 text"),
        (b"\xff\xfei\0m\0x", "is not UTF-8 text"),
    ],
)
def test_what_is_not_text_is_named(tmp_path, message, data, reason):
    path = tmp_path / "set.csv"
    path.write_bytes(data)
    found = message(path)
    assert reason in found
    assert "Save" in found


def test_json_keys_may_be_spelled_differently(root, opened):
    rows = ['{"File Name": "images/0.png", "Label": "a"}']
    rows += [
        f'{{"file name": "images/{k}.png", " label ": "{"ab"[k % 2]}", "more": [1]}}'
        for k in range(1, 12)
    ]
    path = root / "set.jsonl"
    path.write_text("\n".join(rows))
    _, found = opened(path)
    assert found["train"] | found["val"] == TRAIN | VAL
    path.rename(root / "set.ndjson")
    assert opened(root / "set.ndjson")[1] == found


def test_names_are_compared_in_one_form():
    for name in ("File Name", " file_name", "FILE-NAME", "file.name"):
        assert normal(name) == "file_name"


def test_an_unknown_file_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv cannot be read: No such file"):
        open_table(str(tmp_path / "gone.csv"), known)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.xlsx", b"PK\x03\x04rest", "is an Excel workbook or a zip archive"),
        ("a.csv.gz", b"\x1f\x8b\x08", "is a file compressed by gzip"),
        ("a.feather", b"ARROW1", "is an Arrow or Feather file"),
        ("a.json", b' [\n{"image": "a", "label": 1}]', "is one JSON document"),
        ("a.jsonl", b'[{"image": "a", "label": 1}]', "is one JSON document"),
        ("b.jsonl", b'{\n"image": "a",\n"label": 1}', "is one JSON document"),
        ("a.csv", b"<!DOCTYPE html>\n<html>404</html>", "is an HTML page"),
        (
            "b.csv",
            b"version https://git-lfs.github.com/spec/v1\n",
            "pointer of Git LFS",
        ),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "of Git LFS"),
        ("c.jsonl", b'{"image": "a"}', "columns are the keys of the first row"),
        ("a.txt", b"12\nSmiling Young\n", "expected commas, semicolons, tabs or |"),
    ],
)
def test_files_that_are_taken_for_tables_are_named(
    tmp_path, message, name, data, reason
):
    (tmp_path / name).write_bytes(data)
    assert reason in message(tmp_path / name)


def test_text_of_another_ending_is_a_table(root, opened):
    (root / "labels.txt").write_text("\n".join(lines()))
    assert opened(root / "labels.txt")[1] == {"train": TRAIN, "val": VAL}


def test_a_file_of_another_kind_is_explained(tmp_path, message):
    (tmp_path / "a.doc").write_bytes(b"x")
    assert "data.kind=table reads it as a table" in message(tmp_path / "a.doc")
