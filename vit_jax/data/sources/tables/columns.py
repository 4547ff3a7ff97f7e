"""Recognition of a table's columns: which one has the images, the labels, the splits.

Options name the columns; otherwise their names decide, in any case and spelling ("File
Name" is "file_name"). More usual names come first. Two that are equally usual are an
error that names the option.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence

from vit_jax.data.sources import split_names
from vit_jax.data.sources.image_files import EXTENSIONS
from vit_jax.data.sources.options import FIRST_RULES, NO_SPLITS, DataOptions
from vit_jax.data.sources.tables import split_columns
from vit_jax.data.sources.tables.cells import Seen, zero_or_one
from vit_jax.data.sources.tables.files import Table, normal
from vit_jax.data.sources.tables.split_columns import (
    SplitChoice,
    SplitColumns,
    flag_of,
)
from vit_jax.words import did_you_mean, shortened


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Names in the form of `normal`, the more usual ones first.
PATHS = (
    _names("image path file filename"),
    _names(
        "file_name file_names filenames fname filepath filepaths file_path imagepath "
        "image_path img_path image_file image_filename image_file_name img_file "
        "imagename image_name img_name img image_index relative_path rel_path picture "
        "photo"
    ),
    _names("image_id imageid img_id id"),
)
LABELS = (
    _names("label labels"),
    _names(
        "class category target tag tags classes categories class_name classname "
        "class_label label_name category_name"
    ),
    _names("class_id label_id category_id"),
)
SPLITS = (_names("split"), split_columns.NAMES)
_SEVERAL = ("labels", "tags", "classes", "categories")  # any number of labels per row
_NUMBERING = ("", "index", "unnamed_0", "row", "no", "nr")
_NO_CLASSES = ("sex", "gender", "fold")  # columns that may hold zeros and ones
_MINUS = frozenset(("-1", "-1.0"))
_BLANK = frozenset(("",))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; "" = there is none.

    Attributes:
      labels: one column of labels, or one column of zeros and ones per class; none in a
        table for testing without labels.
      one_hot: whether it is the latter.
      no: texts that stand for 0 in these, which have no 0: -1 or blanks.
      several: whether a row may have any number of labels; decided by the rows if
        `one_hot`.
      splits: the columns that give the split.
    """

    path: str
    labels: tuple[str, ...]
    one_hot: bool
    no: frozenset[str]
    several: bool
    weight: str
    group: str
    splits: SplitColumns

    @property
    def used(self) -> list[str]:
        """Names of all columns whose values are needed."""
        split = (self.splits.column, *self.splits.flags)
        every = (self.path, *self.labels, self.weight, *split, self.group)
        return [name for name in every if name]


def known(name: str) -> bool:
    """Returns whether people give this name to a column of images, labels …"""
    name = normal(name)
    return name == "weight" or any(
        name in tier for kind in (PATHS, LABELS, SPLITS) for tier in kind
    )


def choose(
    table: Table, options: DataOptions, file_split: str
) -> tuple[Columns, list[str], list[str]]:
    """Chooses the columns to read.

    Args:
      table: the table.
      options: names of columns.
      file_split: the split of the whole table; "" = rows may have splits.

    Returns:
      The columns, all problems, and remarks about what was decided.

    Raises:
      UserError: the table cannot be read.
    """
    return _Choice(table, options, file_split).made()


class _Choice:
    """The choice of a table's columns, with its problems and remarks."""

    def __init__(self, table: Table, options: DataOptions, file_split: str):
        self._table, self._options = table, options
        self._file_split = file_split
        self._newer = options.rules > FIRST_RULES
        self._wrong: list[str] = []
        self._remarks: list[str] = []

    def made(self) -> tuple[Columns, list[str], list[str]]:
        path = self._path()
        weight = self._only_or_none("weight")
        group = self._named("group_column", self._options.group_column)
        splits = self._splits(path, {path, weight, group})
        taken = {path, weight, group, splits.column, *splits.flags}
        labels, one_hot = self._labels(taken)
        if not labels and split_names.role(self._file_split) == "test":
            # A test split without labels, which is left out, whatever else it lacks.
            splits, self._wrong = split_columns.NONE, []
        columns = Columns(
            path=path,
            labels=labels,
            one_hot=one_hot,
            no=self._other_zeros(labels) if one_hot else frozenset(),
            several=not one_hot and bool(labels) and self._several(labels[0]),
            weight=weight,
            group=group,
            splits=splits,
        )
        for name in dict.fromkeys(columns.used):
            number = self._table.columns.count(name)
            if number > 1:
                self._wrong.append(f"{number} columns are called {name}")
        return columns, self._wrong, self._remarks

    def _path(self) -> str:
        if name := self._options.path_column:
            return self._named("path_column", name)
        images = list(self._table.images)
        found = self._of_names(PATHS, images) or images or self._of_names(PATHS)
        return self._only(found, "path", PATHS, "path_column")

    def _only_or_none(self, name: str) -> str:
        """Returns the column of this name; "" if there is none."""
        found = self._of_names([[name]])
        if len(found) > 1:
            self._wrong.append(f"{len(found)} columns are called {name}")
        return found[0] if found else ""

    def _labels(self, taken: Iterable[str]) -> tuple[tuple[str, ...], bool]:
        """Returns the columns of labels, and whether there is one per class."""
        if given := self._options.label_columns:
            return self._matching(given)
        found = self._of_names(LABELS[:1])
        if not found:
            classes = [name for name in self._table.class_names if name not in taken]
            found = classes or self._of_names(LABELS)
        if found:
            return (self._only(found, "label", LABELS, "label_columns"),), False
        if split_names.role(self._file_split) == "test":
            if not (binary := self._binary(taken)[0]):
                return (), False
            return binary, True
        binary, others = self._binary(taken)
        if binary:
            self._remarks.append(
                "columns of zeros and ones are taken for classes: "
                f"{shortened(binary)}; data.label_columns names others"
            )
            return binary, True
        seen = self._seen(others)
        ones = [
            name
            for name in others
            if seen[name].is_binary(_BLANK)
            and not seen[name].values <= _BLANK
            and normal(name) not in _NO_CLASSES
        ]
        hint = ""
        if len(ones) > 1:
            hint = (
                f"; {', '.join(ones)} hold only zeros and ones: if these are the "
                f"classes, set data.label_columns={','.join(ones)!r}"
            )
        elif len(others) == 1:
            hint = f"; if it is {others[0]!r}, set data.label_columns={others[0]!r}"
        self._only([], "label", LABELS, "label_columns", hint)
        return (), False

    def _binary(self, taken: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
        """Returns the columns of classes if all others are such, and all others."""
        flags = split_columns.flags_in(self._table.columns)
        others = [
            name
            for name in self._table.columns
            if name not in taken and name not in flags
        ]
        seen = self._seen(others)
        values = set[str]().union(*(seen[name].values for name in others))
        usual = _MINUS if all(zero_or_one(one) is not False for one in values) else ()
        # A class may be called "no", but hardly a numbering.
        others = [
            name
            for name in others
            if normal(name) not in _NUMBERING or seen[name].is_binary(usual)
        ]
        binary = [
            name
            for name in others
            if seen[name].is_binary(usual) and normal(name) not in _NO_CLASSES
        ]
        complete = len(binary) > 1 and len(binary) == len(others)
        if "" in values:
            # Without any 0, a blank may stand for it.
            complete &= any(zero_or_one(one) is False or one in usual for one in values)
        return tuple(binary) if complete else (), others

    def _other_zeros(self, labels: Sequence[str]) -> frozenset[str]:
        """Returns the texts that stand for 0 in columns of classes without any 0."""
        seen = self._seen(labels).values()
        values = set[str]().union(*(one.values for one in seen))
        if any(zero_or_one(one) is False for one in values):
            return frozenset()
        if values & _MINUS:
            self._remarks.append("columns of classes have no 0: -1 is read as 0")
            return _MINUS
        if values & _BLANK:
            self._remarks.append("columns of classes have no 0: blanks are read as 0")
            return _BLANK
        return frozenset()

    def _matching(self, given: str) -> tuple[tuple[str, ...], bool]:
        """Returns the columns of `label_columns`."""
        if any(normal(given) == normal(name) for name in self._table.columns):
            return (self._named("label_columns", given),), False
        found = []
        for part in filter(None, (part.strip() for part in given.split(","))):
            matching = [
                name for name in self._table.columns if fnmatch.fnmatchcase(name, part)
            ] or [self._named("label_columns", part)]
            found += [name for name in matching if name]
        found = tuple(dict.fromkeys(found))
        return found, len(found) > 1

    def _several(self, label: str) -> bool:
        """Returns whether a row may have any number of labels in this column."""
        if label in self._table.lists or label in self._table.single:
            return label in self._table.lists
        given = bool(self._options.label_columns)
        if self._newer and normal(label) == "label" and not given:
            if (seen := self._seen([label])[label]).several and not seen.lists:
                self._remarks.append(
                    "cells of 'label' look like several labels, but each is read as "
                    f"one: {seen.example!r}. If they are several, set "
                    "data.label_columns='label'"
                )
            return False
        if normal(label) == "label" and not (given and self._newer):
            return False
        if not given and normal(label) in _SEVERAL:
            return True
        seen = self._seen([label])[label]
        if seen.several:
            self._remarks.append(
                f"cells of {label!r} hold several labels, so an image may have any "
                "number"
            )
        return seen.several

    def _splits(self, path: str, taken: set[str]) -> SplitColumns:
        given = self._options.split_column
        if given == NO_SPLITS or (self._options.splits.strip() == NO_SPLITS):
            return split_columns.NONE
        if given:
            column = self._named("split_column", given)
            flag = self._newer and not self._options.named_splits and flag_of(column)
            return SplitColumns(flags={column: flag}) if flag else SplitColumns(column)
        labels = (part.strip() for part in self._options.label_columns.split(","))
        patterns = [*filter(None, labels)]
        taken |= {
            name
            for name in self._table.columns
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            or (not patterns and any(normal(name) in tier for tier in LABELS))
        }
        choice = SplitChoice(self._table, self._options, self._file_split)
        found = choice.made(self._of_names(SPLITS[:1]), path, taken)
        self._wrong += choice.wrong
        self._remarks += choice.remarks
        return found

    def _named(self, option: str, name: str) -> str:
        """Returns the column that an option names; "" if there is none."""
        columns = self._table.columns
        if not name or name in columns:
            return name
        found = [column for column in columns if normal(column) == normal(name)]
        if len(found) == 1:
            return found[0]
        here = ", ".join(map(repr, columns)) or "none"
        self._wrong.append(
            f"{len(found) or 'no'} column{'s' * (len(found) > 1)} for data.{option}="
            f"{name!r}; found {here}{did_you_mean(name, columns)}"
        )
        return ""

    def _of_names(
        self, tiers: Sequence[Sequence[str]], among: Sequence[str] | None = None
    ) -> list[str]:
        """Returns the columns with the most usual of the names that occur."""
        columns = self._table.columns if among is None else among
        for tier in tiers:
            if found := [name for name in columns if normal(name) in tier]:
                return found
        return []

    def _only(
        self,
        found: list[str],
        what: str,
        tiers: Sequence[Sequence[str]],
        option: str,
        hint: str = "",
    ) -> str:
        if len(found) == 1:
            return found[0]
        columns = ", ".join(map(repr, self._table.columns)) or "none"
        if found:
            self._wrong.append(
                f"{len(found)} columns for the {what} ({', '.join(found)}): set "
                f"data.{option} to one of them; found {columns}"
            )
        else:
            if any(name.lower().endswith(EXTENSIONS) for name in self._table.columns):
                hint = "; the first line has to name the columns"
            elif len(self._table.columns) == 1:
                hint = f"; {self._table.divided}"
            usual = ", ".join(tiers[0])
            self._wrong.append(
                f"no column for the {what}: expected one of {usual}, or its name in "
                f"data.{option}; found {columns}{hint}"
            )
        return ""

    def _seen(self, columns: Sequence[str]) -> dict[str, Seen]:
        """Looks at the values of columns."""
        seen = {name: Seen(self._options.label_separator) for name in columns}
        if seen:
            for _, row in self._table.rows(columns):
                if not isinstance(row, str):
                    for name, about in seen.items():
                        about.add(row.get(name))
        return seen
