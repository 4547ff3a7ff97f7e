"""Reading of a table's rows, with the reason for each one that cannot be used."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from vit_jax.data.sources.split_names import EVALUATION_NAMES
from vit_jax.errors import UserError

PATH_COLUMNS = ("image", "path", "file", "filename")
LABEL_COLUMNS = ("label", "labels")
SPLITS = ("train", *EVALUATION_NAMES)
SEPARATOR = "|"  # of several labels in one cell
EXPECTED = (
    f"Expected columns: {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}, relative "
    "to the table's folder; label, or labels for several; optionally weight (at least "
    f"0) and split ({', '.join(SPLITS)})."
)
_SHOWN = 10  # problems; all are counted


class TableRow(NamedTuple):
    """The row of one image.

    Attributes:
      path: relative to the table's folder.
      labels: names of its classes; one name if the column is `label`.
      weight: 1 if there is no such column.
      split: one of SPLITS.
    """

    path: str
    labels: list[str]
    weight: float
    split: str


class Problems:
    """A collection of problems, of which the first ten are shown."""

    def __init__(self):
        self._shown: list[str] = []
        self._count = 0

    def add(self, problem: str) -> None:
        self._count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(problem)

    def check(self) -> None:
        """Raises UserError if there is any problem."""
        if self._count:
            more = self._count - len(self._shown)
            lines = [*self._shown, *([f"… and {more:,} more"] if more else [])]
            listed = "".join(f"\n  {line}" for line in lines)
            raise UserError(
                f"the table has {self._count:,} problem(s):{listed}\n{EXPECTED}"
            )


def read_rows(file: str, split: str, rows: list[TableRow], problems: Problems) -> bool:
    """Appends usable rows to `rows`, and the problems of others to `problems`.

    Args:
      file: ends in .csv, .tsv or .jsonl.
      split: split of the whole file; "" = the split column's, or "train" without one.
      rows: the rows read so far.
      problems: the problems found so far.

    Returns:
      Whether a row may have any number of labels.

    Raises:
      UserError: the file cannot be read as text.
    """
    name, line = os.path.basename(file), 1
    cells: dict[str, _Cell] | None = None
    several, empty = False, True
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            for line, row in _LINES[os.path.splitext(file)[1].lower()](text):
                if isinstance(row, list):
                    cells, wrong = _cells(row, split)
                    several = "labels" in row
                    for problem in wrong:
                        problems.add(f"{name}: {problem}")
                    if wrong:
                        return several
                    continue
                assert cells is not None
                empty = False
                try:
                    rows.append(_parsed(row, cells))
                except ValueError as error:
                    problems.add(f"{name}, line {line}: {error}")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error.reason} after line {line}). Save it as "
            "UTF-8."
        ) from error
    except csv.Error as error:
        raise UserError(f"{file} cannot be read after line {line}: {error}") from error
    except OSError as error:
        raise UserError(f"the table {file} cannot be read: {error.strerror}") from error
    if empty:
        problems.add(f"{name}: no rows")
    return several


class _Cell(NamedTuple):
    """The column of a field of `TableRow`, and its parser; it may raise ValueError."""

    column: str
    parse: Callable[[Any], Any]


def _cells(columns: list[str], split: str) -> tuple[dict[str, _Cell], list[str]]:
    """Returns field of `TableRow` → its cell, and the problems of the columns."""
    wrong = []
    found = ", ".join(map(repr, columns)) or "none"
    chosen = {}
    for what, names in (("path", PATH_COLUMNS), ("label", LABEL_COLUMNS)):
        here = [column for column in columns if column in names]
        if len(here) != 1:
            number = f"{len(here)} columns" if here else "no column"
            wrong.append(
                f"{number} for the {what}: expected one of {', '.join(names)}; "
                f"found {found}"
            )
        chosen[what] = here[0] if here else ""
    wrong += [
        f"{columns.count(column)} columns are called {column}"
        for column in ("weight", "split")
        if columns.count(column) > 1
    ]
    cells = {
        "path": _Cell(chosen["path"], _path),
        "labels": _Cell(
            chosen["label"], _labels if chosen["label"] == "labels" else _label
        ),
    }
    if "weight" in columns:
        cells["weight"] = _Cell("weight", _weight)
    if "split" in columns:
        cells["split"] = _Cell("split", lambda value: _split(value, split))
    else:
        cells["split"] = _Cell("", lambda _: split or "train")
    return cells, wrong


def _parsed(row: dict[str, Any] | str, cells: dict[str, _Cell]) -> TableRow:
    """Parses a row; raises ValueError with all of its problems."""
    if isinstance(row, str):
        raise ValueError(row)
    values: dict[str, Any] = {"weight": 1.0}
    wrong = []
    for field, cell in cells.items():
        try:
            values[field] = cell.parse(row.get(cell.column))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return TableRow(**values)


def _path(value: Any) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"path is {value!r}, not a string")
    if not value or not value.strip():
        raise ValueError("empty path")
    return value


def _label(value: Any) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError(f"label is {value!r}, not a string or a whole number")
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError("empty label")
    return [text]


def _labels(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.split(SEPARATOR) if value.strip() else []
    if not isinstance(value, list):
        raise ValueError(f"labels is {value!r}, not a list")
    return [one for element in value for one in _label(element)]


def _weight(value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is {value!r}, not a number of at least 0")
    return weight


def _split(value: Any, expected: str) -> str:
    if value not in SPLITS:
        raise ValueError(f"unknown split {value!r}")
    if expected and value != expected:
        raise ValueError(f"split is {value!r} in the table of split {expected!r}")
    return value


def _delimited(delimiter: str):
    def lines(text: Iterable[str]) -> Iterator[tuple[int, list | dict | str]]:
        """Yields the names of the columns, then each row: a dict, or its problem."""
        reader = csv.reader(text, delimiter=delimiter)
        columns = [name.strip().lower() for name in next(reader, [])]
        yield 1, columns
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) == len(columns):
                yield reader.line_num, dict(zip(columns, values, strict=True))
            else:
                found = f"{len(values)} cells, but {len(columns)} columns"
                yield reader.line_num, found

    return lines


def _json_lines(text: Iterable[str]) -> Iterator[tuple[int, list | dict | str]]:
    columns: list[str] | None = None
    early = []  # broken lines before the first one that gives the columns
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        row = _json_row(line)
        if columns is None:
            if isinstance(row, str):
                early.append((number, row))
                continue
            columns = list(row)
            yield number, columns
            yield from early
        if isinstance(row, dict):
            new = {"weight", "split"} & row.keys() - set(columns)
            if new:
                row = f"{', '.join(sorted(new))}, which the first row does not have"
        yield number, row
    if columns is None:
        yield 1, []
        yield from early


def _json_row(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not a JSON object ({error})"
    if not isinstance(row, dict):
        return "not a JSON object"
    return {name.strip().lower(): value for name, value in row.items()}


_LINES = {".csv": _delimited(","), ".tsv": _delimited("\t"), ".jsonl": _json_lines}
