"""Files of results: their content, and going on after any kind of end."""

import csv
import errno
import json
import os
import sys
import unittest.mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from vit_jax.errors import UserError
from vit_jax.prediction import appending, parquet
from vit_jax.prediction.passes import Prediction
from vit_jax.prediction.records import Layout, to_json
from vit_jax.prediction.saving import check_path, open_results

LAYOUT = Layout(2, "probability")
WEIGHTS = {"fingerprint": "f1", "checkpoint": "runs/a", "step": 3}
# Names that need quotes, escapes or are not UTF-8.
NAMES = ["a.png", 'b,"ü".png', "c\nd.png", "e\udce9.png", "f\r.png", "g.png"]
SUFFIXES = (".jsonl", ".csv", ".parquet")
HIGH, LOW = (float(np.float32(p)) for p in (0.7, 0.1))


def predicted(name):
    if name.startswith("c"):
        return Prediction(name, [], UserError(f"{name} is bad"))
    return Prediction(name, [("cat", HIGH), ("süß\n", LOW)])


def add(path, names, layout=LAYOUT, weights=WEIGHTS, end=None):
    """Adds the images that the file lacks; returns those that it had, and failures."""
    with open_results(path, layout, weights) as (results, done):
        had = [name for name in names if name in done]
        for name in names:
            if name not in done:
                results.write(to_json(predicted(name), layout.value))
        if end:
            raise end
    return had, [each.image for each in done.failed]


def rows(path):
    """Reads [(image, error, [(class, probability), …])] with another library."""
    if path.suffix == ".jsonl":
        records = map(json.loads, path.read_text().splitlines())
        return [
            (
                each["image"].encode("utf-8", "backslashreplace").decode(),
                each.get("error"),
                [(top["class"], top["probability"]) for top in each.get("top", ())],
            )
            for each in records
        ]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    else:
        table = pq.read_table(path).to_pylist()
    found = []
    for row in table:
        assert list(row) == [
            *("image", "error", "class_1", "probability_1", "class_2", "probability_2")
        ]
        top = [(row[f"class_{n}"], row[f"probability_{n}"]) for n in (1, 2)]
        top = [(name, float(p)) for name, p in top if name]
        found.append((row["image"], row["error"] or None, top))
    return found


def expected(names):
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return [
        (text, f"{text} is bad", [])
        if text.startswith("c")
        else (text, None, [("cat", HIGH), ("süß\n", LOW)])
        for text in shown
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_result_is_in_the_file_once(suffix, tmp_path):
    path = tmp_path / "new" / f"x{suffix}"
    assert add(path, NAMES[:4]) == ([], [])
    assert rows(path) == expected(NAMES[:4])
    # The same command again, and with more images.
    assert add(path, NAMES[:4]) == (NAMES[:4], NAMES[2:3])
    assert rows(path) == expected(NAMES[:4])
    assert add(path, NAMES)[0] == NAMES[:4]
    assert rows(path) == expected(NAMES)
    left = {each.name for each in path.parent.iterdir()}
    assert left == {path.name, f"{path.name}.meta.json", f".{path.name}.lock"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_command_keeps_its_results(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(KeyboardInterrupt):
        add(path, NAMES[:4], end=KeyboardInterrupt())
    assert path.exists() == (suffix != ".parquet")
    assert add(path, NAMES) == (NAMES[:4], NAMES[2:3])
    assert rows(path) == expected(NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_at_any_byte_loses_only_what_was_not_written(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(KeyboardInterrupt):
        add(path, NAMES, end=KeyboardInterrupt())
    grown = path if path.exists() else tmp_path / f"{path.name}.partial.jsonl"
    whole = grown.read_bytes()
    for length in range(0, len(whole), 7):
        path.unlink(missing_ok=True)
        grown.write_bytes(whole[:length])
        had, _ = add(path, NAMES)
        assert had == NAMES[: len(had)]
        assert rows(path) == expected(NAMES), length
        if suffix != ".parquet":
            assert path.read_bytes() == whole


def test_a_kill_while_a_parquet_file_is_made_loses_and_doubles_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet, "_GROUP", 2)
    path = tmp_path / "x.parquet"
    journal = tmp_path / "x.parquet.partial.jsonl"
    with pytest.raises(KeyboardInterrupt):
        add(path, NAMES[:3], end=KeyboardInterrupt())
    lines = journal.read_bytes()
    add(path, [])
    assert rows(path) == expected(NAMES[:3])
    journal.write_bytes(lines)  # as if it had been killed before removing it
    assert add(path, NAMES) == (NAMES[:3], NAMES[2:3])
    assert rows(path) == expected(NAMES)
    assert not journal.exists()
    assert pq.ParquetFile(path).num_row_groups == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_of_something_else_are_not_continued(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    add(path, NAMES[:2])
    before = path.read_bytes()
    later = WEIGHTS | {"fingerprint": "f2", "step": 4}
    with pytest.raises(UserError, match="runs/a at step 3, now runs/a at step 4"):
        add(path, NAMES, weights=later)
    with pytest.raises(UserError, match=r"the first 2 classes .* now the first 1 are"):
        add(path, NAMES, Layout(1, "probability"))
    # Another name of the same weights is no obstacle.
    assert add(path, NAMES[:2], weights=WEIGHTS | {"checkpoint": "b"})[0] == NAMES[:2]
    assert path.read_bytes() == before
    (tmp_path / f"{path.name}.meta.json").write_text("{}")
    with pytest.raises(UserError, match="does not say how its results were made"):
        add(path, NAMES)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".jsonl", b'{"image": "a.png"}\n[]\n', "record 2 is not a result"),
        (".jsonl", b"what\n", "record 1 is not a result"),
        (".csv", b"path,class\na.png,cat\n" * 5, "begins with other columns"),
        (".csv", None, "record 3 is not a result .expected 6 columns"),
        (".parquet", b"what", "is not a readable Parquet file"),
    ],
)
def test_a_file_with_something_else_is_refused(suffix, content, message, tmp_path):
    path = tmp_path / f"x{suffix}"
    add(path, NAMES[:2])
    if content is None:
        content = path.read_bytes() + b"a,b\n"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        add(path, NAMES)
    assert path.read_bytes() == content


def test_two_processes_do_not_write_to_one_file(tmp_path):
    path = tmp_path / "x.csv"
    with open_results(path, LAYOUT, WEIGHTS), pytest.raises(UserError, match="another"):
        add(path, NAMES)
    assert add(path, NAMES) == ([], [])


def test_unusable_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"must end in .jsonl .JSON lines., .csv or"):
        check_path(tmp_path / "x.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_path(tmp_path / "folder.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        add(tmp_path / "file" / "x.csv", NAMES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"need pyarrow: pip install 'vit_jax\[parquet"):
        check_path(tmp_path / "x.parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_errors_of_the_system_name_the_file(suffix, tmp_path):
    for length in (250 - len(suffix), 300):  # too long for what is put beside it
        name = "x" * length + suffix
        check_path(tmp_path / name)
        with pytest.raises(UserError, match=rf"--out=.*{name} cannot be written: File"):
            add(tmp_path / name, NAMES)
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(UserError, match="is a pipe or a device; pass the name of a"):
        add(tmp_path / f"pipe{suffix}", NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_keeps_what_was_written(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    assert add(path, NAMES[:2]) == ([], [])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(appending.os, "fsync", unittest.mock.Mock(side_effect=full))
        with pytest.raises(UserError, match=r"written: No space left .* is kept"):
            add(path, NAMES[:3])
    assert add(path, NAMES) == (NAMES[:3], NAMES[2:3])
    assert rows(path) == expected(NAMES)


@pytest.mark.parametrize(
    ("error", "works"),
    [
        (NotImplementedError(), True),
        (OSError(errno.ENOLCK, "No locks available"), True),
        (OSError(errno.EROFS, "Read-only file system"), False),
    ],
)
def test_file_systems_without_locks(error, works, tmp_path, monkeypatch):
    acquire = unittest.mock.Mock(side_effect=error)
    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    if works:
        assert add(tmp_path / "x.csv", NAMES) == ([], [])
        assert rows(tmp_path / "x.csv") == expected(NAMES)
    else:
        with pytest.raises(UserError, match=r"x\.csv cannot be written: Read-only"):
            add(tmp_path / "x.csv", NAMES)


def test_plain_numbers_are_values(tmp_path):
    path = tmp_path / "x.csv"
    with open_results(path, Layout(1, "value"), WEIGHTS) as (results, _):
        results.write(to_json(Prediction("a.png", [("age", -3.25)]), "value"))
    assert path.read_text() == "image,error,class_1,value_1\na.png,,age,-3.25\n"


def test_results_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match=r"a.png: the model does not give finite"):
        to_json(Prediction("a.png", [("cat", float("nan"))]), "probability")
