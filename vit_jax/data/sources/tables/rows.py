"""Reading of a table's rows, with the reason for each one that cannot be used."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax.data.sources import split_names
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.tables.cells import (
    clean_path,
    is_empty,
    listed,
    zero_or_one,
)
from vit_jax.data.sources.tables.columns import PATHS, Columns
from vit_jax.data.sources.tables.files import Row, Table
from vit_jax.data.sources.tables.parquet import EmbeddedImage
from vit_jax.data.sources.tables.paths import Place
from vit_jax.errors import UserError

EXPECTED = (
    f"Expected columns: {', '.join(PATHS[0][:-1])} or {PATHS[0][-1]}, relative to the "
    "table's folder; label, or labels for several; optionally weight (at least 0) and "
    f"split ({', '.join(split_names.PLAIN_NAMES)}). Other names are given by "
    "data.path_column, data.label_columns, data.split_column and data.splits."
)
_SHOWN = 10  # problems; all are counted


class TableRow(NamedTuple):
    """The row of one image.

    Attributes:
      path: relative to the data set's folder.
      labels: names of its classes.
      weight: 1 if there is no such column.
      split: the name of its split.
      group: what `group_column` says; "" = it is in no group.
    """

    path: str
    labels: list[str]
    weight: float
    split: str
    group: str = ""


class Problems:
    """A collection of problems, of which the first ten are shown."""

    def __init__(self):
        self._shown: list[str] = []
        self._count = 0
        self._hints: list[str] = []

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, problem: str) -> None:
        self._count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(problem)

    def hint(self, sentence: str) -> None:
        """Adds what may be done about a problem."""
        self._hints.append(sentence)

    def check(self) -> None:
        """Raises UserError if there is any problem."""
        if self._count:
            more = self._count - len(self._shown)
            lines = [*self._shown, *([f"… and {more:,} more"] if more else [])]
            listed = "".join(f"\n  {line}" for line in lines)
            hints = "".join(f"\n{hint}" for hint in self._hints)
            raise UserError(
                f"the table has {self._count:,} problem(s):{listed}{hints}\n{EXPECTED}"
            )


class Rows:
    """The rows of all tables of a data set, as they are read.

    Attributes:
      usable: the rows that can be used.
      problems: why others cannot.
      unlabelled: split for testing → number of its rows without a label, which are not
        in `usable`.
    """

    def __init__(self):
        self.usable: list[TableRow] = []
        self.problems = Problems()
        self.unlabelled: Counter[str] = Counter()
        self._without: list[tuple[str, str]] = []  # (split, problem)

    def read(
        self,
        table: Table,
        columns: Columns,
        file_split: str,
        place: Place,
        options: DataOptions,
    ) -> None:
        """Reads a table.

        Args:
          table: the table.
          columns: its columns.
          file_split: split of the whole table; "" = the split column's, or "train"
            without one.
          place: where its paths lead.
          options: how the data set is read.

        Raises:
          UserError: the table cannot be read.
        """
        parser, empty = _Parser(columns, file_split, place, options), True
        for number, row in table.rows(columns.used):
            where = f"{table.name}, {table.unit} {number}"
            if isinstance(row, str):
                self.problems.add(f"{where}: {row}")
                continue
            empty = False
            try:
                parsed = parser(row)
            except ValueError as error:
                self.problems.add(f"{where}: {error}")
                continue
            one_hot = columns.one_hot and not parser.is_unlabelled(row)
            if parsed.labels or columns.several or one_hot:
                self.usable.append(parsed)
            elif split_names.role(parsed.split) == "test":
                self.unlabelled[parsed.split] += 1
                self._without.append((parsed.split, f"{where}: empty label"))
            else:
                self.problems.add(f"{where}: empty label")
        if empty:
            self.problems.add(f"{table.name}: no rows")

    def check(self) -> None:
        """Raises UserError if there is any problem.

        A split for testing may lack all of its labels, but not some of them.
        """
        labelled = {row.split for row in self.usable}
        for split, problem in self._without:
            if split in labelled:
                self.problems.add(problem)
        self.problems.check()


class _Parser:
    """A function from a table's row to a `TableRow`."""

    def __init__(
        self, columns: Columns, file_split: str, place: Place, options: DataOptions
    ):
        self._columns, self._place, self._options = columns, place, options
        self._file_split = file_split
        self._named = options.named_splits
        # Field of `TableRow` → its column and the function that reads a cell.
        self._cells: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "path": (columns.path, self._path)
        }
        if not columns.one_hot:
            label = columns.labels[0] if columns.labels else ""
            self._cells["labels"] = (
                label,
                self._labels if columns.several else _label_or_none,
            )
        if columns.weight:
            self._cells["weight"] = (columns.weight, _weight)
        if columns.split:
            self._cells["split"] = (columns.split, self._split)
        elif columns.folder_is_split:
            self._cells["split"] = (columns.path, self._split)
        if columns.group:
            self._cells["group"] = (columns.group, _group)

    def __call__(self, row: Row) -> TableRow:
        """Parses a row; raises ValueError with all of its problems."""
        values: dict[str, Any] = {
            "weight": 1.0,
            "split": self._file_split or "train",
        }
        wrong = []
        for field, (column, parse) in self._cells.items():
            try:
                values[field] = parse(row.get(column))
            except ValueError as error:
                wrong.append(str(error))
        if self._columns.one_hot:
            values["labels"] = self._ones(row, wrong)
        if wrong:
            raise ValueError("; ".join(wrong))
        return TableRow(**values)

    def is_unlabelled(self, row: Row) -> bool:
        """Returns whether all cells of labels are empty."""
        return all(is_empty(row.get(column)) for column in self._columns.labels)

    def _path(self, value: Any) -> str:
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise ValueError(f"path is {_short(value)}, not a string")
        if isinstance(value, int) and not self._options.image_suffix:
            raise ValueError(f"path is {value}, not a string")
        text = "" if value is None else str(value)
        if not text.strip():
            raise ValueError("empty path")
        if "\n" in text:
            raise ValueError(f"path is {_short(text)}: is a quote missing?")
        return self._place(value if isinstance(value, EmbeddedImage) else text)

    def _labels(self, value: Any) -> list[str]:
        if isinstance(value, str):
            text = value.strip()
            value = listed(text)
            if value is None:
                value = text.split(self._options.label_separator) if text else []
        elif isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list):
            if value is None:
                return []
            raise ValueError(f"labels is {_short(value)}, not a list")
        return [one for element in value for one in _label(element)]

    def _ones(self, row: Row, wrong: list[str]) -> list[str]:
        """Returns the columns of classes in which there is a one."""
        labels = []
        if self.is_unlabelled(row):
            return labels
        for column in self._columns.labels:
            value = row.get(column)
            one = zero_or_one(value)
            if one is None and self._columns.minus_is_no:
                one = False if str(value).strip() in ("-1", "-1.0") else None
            if one is None:
                wrong.append(f"{column} is {_short(value)}, not 0 or 1")
            elif one:
                labels.append(column)
        return labels

    def _split(self, value: Any) -> str:
        text = "" if value is None else str(value).strip()
        split = self._named.get(text)
        if self._options.rules == FIRST_RULES and not split:
            split = value if value in split_names.PLAIN_NAMES else None
        else:
            # A path: its first folder.
            folder = clean_path(text).partition("/")[0] if "/" in text else text
            split = split or self._named.get(folder) or split_names.canonical(folder)
        if split is None:
            raise ValueError(f"unknown split {value!r}")
        if self._file_split and split_names.role(split) != split_names.role(
            self._file_split
        ):
            raise ValueError(
                f"split is {value!r} in the table of split {self._file_split!r}"
            )
        return self._file_split or split


def _label_or_none(value: Any) -> list[str]:
    """Reads a label; [] for an empty cell."""
    return [] if is_empty(value) else _label(value)


def _label(value: Any) -> list[str]:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError(f"label is {_short(value)}, not a string or a whole number")
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError("empty label")
    if "\n" in text:
        raise ValueError(f"label is {_short(text)}: is a quote missing?")
    return [text]


def _weight(value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is {value!r}, not a number of at least 0")
    return weight


def _group(value: Any) -> str:
    return "" if is_empty(value) else str(value).strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
