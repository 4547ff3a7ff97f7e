"""Reading of a table's rows, with the reason for each one that cannot be used."""

import math
import re
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
from vit_jax.data.sources.tables.split_columns import split_of_flags
from vit_jax.errors import UserError
from vit_jax.words import shortened

EXPECTED = (
    f"Expected columns: {', '.join(PATHS[0][:-1])} or {PATHS[0][-1]}, relative to the "
    "table's folder; label, or labels for several; optionally weight (at least 0) and "
    f"split ({', '.join(split_names.PLAIN_NAMES)}). Other names are given by "
    "data.path_column, data.label_columns, data.split_column and data.splits (such as "
    "train=a,val=b; rows with other values are then left out)."
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
      unnamed: value of the split column that `data.splits` does not name → number of
        its rows, which are not in `usable`.
      named: values of the split column that `data.splits` names.
      divided: whether a column or a folder of the path gives the split.
    """

    def __init__(self):
        self.usable: list[TableRow] = []
        self.problems = Problems()
        self.unlabelled: Counter[str] = Counter()
        self.unnamed: Counter[str] = Counter()
        self.named: set[str] = set()
        self.divided = False
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
        if not columns.labels and split_names.role(file_split) == "test":
            # Without labels it is of no use, whatever else is in it.
            self.unlabelled[file_split] += sum(1 for _ in table.rows([]))
            return
        parser, empty = _Parser(columns, file_split, place, options), True
        where = f"{table.name}, {table.unit}"
        for number, row in table.rows(columns.used):
            if isinstance(row, str):
                self.problems.add(f"{where} {number}: {row}")
                continue
            empty = False
            try:
                parsed = parser(row)
            except _Unnamed as error:
                self.unnamed[str(error)] += 1
                continue
            except ValueError as error:
                self.problems.add(f"{where} {number}: {error}")
                continue
            one_hot = columns.one_hot and not parser.is_unlabelled(row)
            if parsed.labels or columns.several or one_hot:
                self.usable.append(parsed)
            elif split_names.role(parsed.split) == "test":
                self.unlabelled[parsed.split] += 1
                self._without.append((parsed.split, f"{where} {number}: empty label"))
            else:
                self.problems.add(f"{where} {number}: empty label")
        if empty:
            self.problems.add(f"{table.name}: no rows")
        self._check_splits(table, columns, parser, options)

    def _check_splits(
        self, table: Table, columns: Columns, parser: "_Parser", options: DataOptions
    ) -> None:
        """Adds a problem if values of the split column are unknown or ambiguous."""
        self.divided |= bool(columns.splits.column or columns.splits.folder)
        self.named |= parser.split_of.keys() & options.named_splits.keys()
        if options.rules == FIRST_RULES:
            return
        spellings: dict[str, dict[str, str]] = {}
        for value, split in parser.split_of.items():
            if split and value not in options.named_splits:
                spellings.setdefault(split, {}).setdefault(_letters(value), value)
        for split, some in spellings.items():
            if len(some) > 1:
                given = ",".join(f"{split}={value}" for value in some.values())
                self.problems.add(
                    f"{table.name}: several values could be the split {split}: "
                    f"{shortened([*some.values()], repr)}. Name those to use, as in "
                    f"data.splits={given!r}"
                )

    def check(self) -> None:
        """Raises UserError if there is any problem.

        A split for testing may lack all of its labels, but not some of them.
        """
        labelled = {row.split for row in self.usable}
        for split, problem in self._without:
            if split in labelled:
                self.problems.add(problem)
        self.problems.check()


class _Unnamed(ValueError):
    """A value of the split column that `data.splits` does not name."""


class _Parser:
    """A function from a table's row to a `TableRow`."""

    def __init__(
        self, columns: Columns, file_split: str, place: Place, options: DataOptions
    ):
        self._columns, self._place, self._options = columns, place, options
        self._file_split = file_split
        self._named = options.named_splits
        self.split_of: dict[str, str | None] = {}  # value of the column → its split
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
        splits = columns.splits
        if splits.column or splits.folder:
            self._cells["split"] = (splits.column or columns.path, self._split)
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
            except _Unnamed:
                raise  # what else is in the row does not matter
            except ValueError as error:
                wrong.append(str(error))
        if self._columns.splits.flags:
            try:
                values["split"] = split_of_flags(row, self._columns.splits.flags)
            except ValueError as error:
                wrong.append(str(error))
        if self._columns.one_hot:
            values["labels"] = self._ones(row, wrong)
        if wrong:
            raise ValueError("; ".join(wrong))
        return TableRow(**values)

    def is_unlabelled(self, row: Row) -> bool:
        """Returns whether all cells of labels are empty, and this means nothing."""
        columns = self._columns
        blank_is_no = "" in columns.no
        return not blank_is_no and all(is_empty(row.get(one)) for one in columns.labels)

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
            if one is None and self._columns.no:
                text = "" if value is None else str(value).strip()
                one = False if text in self._columns.no else None
            if one is None:
                wrong.append(f"{column} is {_short(value)}, not 0 or 1")
            elif one:
                labels.append(column)
        return labels

    def _split(self, value: Any) -> str:
        text = "" if value is None else str(value).strip()
        if "/" in text and text not in self._named:  # a path: its first folder
            text = clean_path(text).partition("/")[0]
        if text not in self.split_of:
            self.split_of[text] = self._meaning(text, value)
        split = self.split_of[text]
        if split is None:
            if self._named and not self._file_split:
                raise _Unnamed(text)
            raise ValueError(f"unknown split {value!r}")
        if self._file_split and split_names.role(split) != split_names.role(
            self._file_split
        ):
            raise ValueError(
                f"split is {value!r} in the table of split {self._file_split!r}"
            )
        return self._file_split or split

    def _meaning(self, text: str, value: Any) -> str | None:
        """Returns the split that a value of the split column means."""
        if split := self._named.get(text):
            return split
        if self._options.rules == FIRST_RULES:
            return value if value in split_names.PLAIN_NAMES else None
        return split_names.canonical(text)


def _letters(value: str) -> str:
    """Writes a value for comparison with other spellings of it."""
    return re.sub(r"[\W_]+", "", value.casefold())


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
