"""Recognition of the columns of a table that give the splits.

In this order: the column that an option names; one called "split"; one of another usual
name, or else of any name, in which every value is a known split; flags of zeros and
ones, such as "is_valid"; the first folder of every path.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vit_jax.data.sources import split_names
from vit_jax.data.sources.options import FIRST_RULES, NO_SPLITS, DataOptions
from vit_jax.data.sources.tables.cells import Seen, clean_path, zero_or_one
from vit_jax.data.sources.tables.files import Table, normal
from vit_jax.words import shortened

# Usual names, in the form of `normal`, beside "split".
NAMES = (
    *("set", "subset", "partition", "phase", "usage"),
    *("data_split", "dataset_split", "split_name"),
    *("train_test", "train_val", "train_val_test", "train_test_split"),
)
_FLAG = re.compile(r"(is|in)_(?P<split>[a-z]+)")
_FEW = 5  # values of a column that may be a numbered split


class SplitColumns(NamedTuple):
    """The columns that give the splits.

    Attributes:
      column: the column of their names; "" = there is none.
      flags: columns of zeros and ones → the split that a one stands for.
      folder: whether the first folder of the path is the split.
    """

    column: str = ""
    flags: Mapping[str, str] = MappingProxyType({})
    folder: bool = False


NONE = SplitColumns()


def flag_of(column: str) -> str | None:
    """Returns the split for which a column has a one: "val" for "is_valid"."""
    found = _FLAG.fullmatch(normal(column))
    split = split_names.canonical(found["split"]) if found else None
    return split and ("val" if split_names.role(split) == "val" else split)


def flags_in(columns: Sequence[str]) -> Mapping[str, str]:
    """Returns the columns that are flags by their names, and the splits they mean."""
    found = {name: split for name in columns if (split := flag_of(name))}
    others = any(
        normal(name).startswith("is_") for name in columns if name not in found
    )
    if others and set(found.values()) == {"train"}:
        return {}  # trains beside is_car and is_bus
    return found


class SplitChoice:
    """The choice of these columns, with its problems and remarks.

    Attributes:
      wrong: all problems.
      remarks: sentences about what was decided.
    """

    def __init__(self, table: Table, options: DataOptions, file_split: str):
        self._table, self._options = table, options
        self._file_split = file_split
        self.wrong: list[str] = []
        self.remarks: list[str] = []

    def made(self, named: Sequence[str], path: str, taken: Collection[str]):
        """Chooses the columns of a table whose options name none.

        Args:
          named: the columns that are called "split".
          path: the column of images.
          taken: columns of another meaning.
        """
        if len(named) > 1:
            self._several(named)
            return NONE
        if named:
            return SplitColumns(named[0])
        if self._options.rules == FIRST_RULES or self._file_split:
            return NONE
        taken = {*taken, *self._table.images}
        others = [name for name in self._table.columns if name not in taken]
        found = self._usual(others)
        if found == "":
            found = self._by_values(others)
        if found is None:
            return NONE
        if found:
            self.remarks.append(f"the column {found!r} gives the splits")
            return SplitColumns(found)
        if flags := self._flags(taken):
            return SplitColumns(flags=flags)
        return SplitColumns(folder=self._folders(path))

    def _several(self, found: Sequence[str]) -> None:
        columns = ", ".join(map(repr, self._table.columns))
        self.wrong.append(
            f"{len(found)} columns for the split ({', '.join(found)}): set "
            f"data.split_column to one of them, or to {NO_SPLITS!r}; found {columns}"
        )

    def _usual(self, columns: Sequence[str]) -> str | None:
        """Returns the column with a usual name and with splits; "" without one.

        None if there is a problem.
        """
        sure, unsure = [], False
        for name in columns:
            if normal(name) not in NAMES:
                continue
            seen = self._seen(name)
            meant = {value: self._meaning(value) for value in seen.values}
            unknown = sorted(value for value, split in meant.items() if not split)
            if "train" not in meant.values():
                self._remark_on_numbers(name, seen)
            elif unknown or seen.more:
                unsure = True
                self.wrong.append(
                    f"the column {name} looks like one of splits, but has other "
                    f"values: {shortened(unknown, repr)}; set "
                    f"data.split_column={name!r}, and data.splits for what they mean, "
                    f"or data.split_column={NO_SPLITS!r}"
                )
            else:
                sure.append(name)
        if len(sure) > 1:
            self._several(sure)
        return None if unsure or len(sure) > 1 else "".join(sure)

    def _remark_on_numbers(self, name: str, seen: Seen) -> None:
        """Says that a column such as "partition" of 0, 1 and 2 is not used."""
        values = sorted(seen.values)
        if 2 <= len(values) <= _FEW and all(map(str.isdecimal, values)):
            parts = zip(("train", "val", "test"), values, strict=False)
            example = ",".join(f"{split}={value}" for split, value in parts)
            self.remarks.append(
                f"the column {name!r} is not used: its values {', '.join(values)} are "
                f"no names of splits. If they are splits, set data.split_column="
                f"{name!r} and data.splits, as in {example!r}"
            )

    def _by_values(self, columns: Sequence[str]) -> str | None:
        """Returns the only column in which every value is a split; "" without one.

        None if there is a problem.
        """
        meant: dict[str, dict[str, str]] = {name: {} for name in columns}
        for row in self._rows(columns):
            for name in [*meant]:
                value = row.get(name)
                known = meant[name]
                if isinstance(value, str) and (text := value.strip()) in known:
                    continue
                if not isinstance(value, str) or not split_names.is_unmistakable(text):
                    del meant[name]
                else:
                    known[text] = self._meaning(text) or ""
            if not meant:
                return ""
        found = [
            name
            for name, known in meant.items()
            if "train" in known.values() and len(set(known.values())) > 1
        ]
        if len(found) > 1:
            self._several(found)
            return None
        return "".join(found)

    def _flags(self, taken: Collection[str]) -> Mapping[str, str]:
        """Returns the columns such as "is_valid"."""
        named = flags_in([name for name in self._table.columns if name not in taken])
        found = {
            name: split for name, split in named.items() if self._seen(name).is_binary()
        }
        for name, split in found.items():
            self.remarks.append(
                f"a one in the column {name!r} means the split {split!r}; "
                f"data.split_column={NO_SPLITS!r} means that there are no splits"
            )
        return found

    def _folders(self, path: str) -> bool:
        """Returns whether every path begins with the folder of a split."""
        if not path or path in self._table.images:
            return False
        meant = set[str]()
        for row in self._rows([path]):
            folder, slash, _ = clean_path(str(row.get(path) or "")).partition("/")
            split = self._meaning(folder) if slash else None
            if not split:
                return False
            meant.add(split)
        if "train" not in meant or len(meant) < 2:
            return False
        self.remarks.append(
            "the first folder of each path gives the split; data.split_column="
            f"{NO_SPLITS!r} means that there are no splits"
        )
        return True

    def _meaning(self, value: str) -> str | None:
        given = self._options.named_splits
        return given.get(value) or split_names.canonical(value)

    def _seen(self, name: str) -> Seen:
        seen = Seen(self._options.label_separator)
        for row in self._rows([name]):
            seen.add(row.get(name))
        return seen

    def _rows(self, columns: Sequence[str]) -> Iterator[dict]:
        rows = self._table.rows(columns) if columns else ()
        return (row for _, row in rows if not isinstance(row, str))


def split_of_flags(row: Mapping, flags: Mapping[str, str]) -> str:
    """Returns the split of a row by its flags; those without any are for training.

    Where the only flags are for training, the others are for evaluation.

    Raises:
      ValueError: the row is in two splits, in none, or a cell is not 0 or 1.
    """
    found = set[str]()
    for name, split in flags.items():
        value = zero_or_one(row.get(name))
        if value is None:
            raise ValueError(f"{name} is {row.get(name)!r}, not 0 or 1")
        if value:
            found.add(split)
    if len(found) > 1:
        raise ValueError(f"{' and '.join(flags)} give it several splits")
    if found:
        return found.pop()
    if "train" not in flags.values():
        return "train"
    if set(flags.values()) == {"train"}:
        return "val"
    raise ValueError(f"{' and '.join(flags)} give it no split")
