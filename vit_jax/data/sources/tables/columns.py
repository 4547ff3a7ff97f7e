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
from vit_jax.data.sources.tables.cells import Seen, clean_path, zero_or_one
from vit_jax.data.sources.tables.files import Table, normal
from vit_jax.words import did_you_mean, shortened


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Names in the form of `normal`, the more usual ones first.
PATHS = (
    _names("image path file filename"),
    _names(
        "file_name filepath file_path imagepath image_path img_path image_file "
        "image_filename image_file_name img_file imagename image_name img_name img "
        "image_index relative_path rel_path picture photo"
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
SPLITS = (
    _names("split"),
    _names(
        "set subset partition phase data_split dataset_split split_name train_test "
        "train_val train_val_test train_test_split usage"
    ),
)
_SEVERAL = ("labels", "tags", "classes", "categories")  # any number of labels per row
_NUMBERING = ("", "index", "unnamed_0", "row", "no", "nr")
_MINUS = frozenset(("-1", "-1.0"))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; "" = there is none.

    Attributes:
      labels: one column of labels, or one column of zeros and ones per class; none in a
        table for testing without labels.
      one_hot: whether it is the latter.
      minus_is_no: whether -1 stands for 0 in these, which have no 0.
      several: whether a row may have any number of labels; decided by the rows if
        `one_hot`.
      folder_is_split: whether the first folder of the path is the split.
    """

    path: str
    labels: tuple[str, ...]
    one_hot: bool
    minus_is_no: bool
    several: bool
    weight: str
    split: str
    group: str
    folder_is_split: bool

    @property
    def used(self) -> list[str]:
        """Names of all columns whose values are needed."""
        every = (self.path, *self.labels, self.weight, self.split, self.group)
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
        split = self._split(path)
        labels, one_hot = self._labels({path, weight, group, split})
        columns = Columns(
            path=path,
            labels=labels,
            one_hot=one_hot,
            minus_is_no=one_hot and self._minus_is_no(labels),
            several=not one_hot and bool(labels) and self._several(labels[0]),
            weight=weight,
            split=split,
            group=group,
            folder_is_split=not split and bool(path) and self._folders(path),
        )
        for name in columns.used:
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
        others = [
            name
            for name in self._table.columns
            if name not in taken and normal(name) not in _NUMBERING
        ]
        seen = self._seen(others)
        values = set[str]().union(*(seen[name].values for name in others))
        usual = _MINUS if all(zero_or_one(one) is not False for one in values) else ()
        binary = [name for name in others if seen[name].is_binary(usual)]
        if len(binary) > 1 and len(binary) == len(others):
            return tuple(binary), True
        if split_names.role(self._file_split) == "test":
            return (), False  # a test split without labels, which is left out
        hint = ""
        if len(binary) > 1:
            hint = (
                f"; {', '.join(binary)} hold only zeros and ones: if these are the "
                f"classes, set data.label_columns={','.join(binary)!r}"
            )
        self._only([], "label", LABELS, "label_columns", hint)
        return (), False

    def _minus_is_no(self, labels: Sequence[str]) -> bool:
        """Returns whether the columns of classes hold ones and minus ones only."""
        seen = self._seen(labels).values()
        values = set[str]().union(*(one.values for one in seen))
        if not (values & _MINUS) or any(zero_or_one(one) is False for one in values):
            return False
        self._remarks.append("columns of classes have no 0: -1 is read as 0")
        return True

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
        if normal(label) == "label":
            return False
        if not self._options.label_columns and normal(label) in _SEVERAL:
            return True
        seen = self._seen([label])[label]
        if seen.several:
            self._remarks.append(
                f"cells of {label!r} hold several labels, so an image may have any "
                "number"
            )
        return seen.several

    def _split(self, path: str) -> str:
        given = self._options.split_column
        if given == NO_SPLITS or (self._options.splits.strip() == NO_SPLITS):
            return ""
        if given:
            return self._named("split_column", given)
        found = self._of_names(SPLITS[:1])
        if found:
            return self._only(found, "split", SPLITS[:1], "split_column")
        others = self._of_names(SPLITS) if self._newer and not self._file_split else []
        others = [name for name in others if name != path]
        seen = self._seen(others)
        sure, unsure = [], []
        for name in others:
            meant = {value: self._meaning(value) for value in seen[name].values}
            if "train" not in meant.values():
                continue
            unknown = [value for value, split in meant.items() if not split]
            if unknown or seen[name].more:
                unsure.append(name)
                self._wrong.append(
                    f"the column {name} looks like one of splits, but has other "
                    f"values: {shortened(sorted(unknown), repr)}; set "
                    f"data.split_column={name!r}, and data.splits for what they mean, "
                    f"or data.split_column={NO_SPLITS!r}"
                )
            else:
                sure.append(name)
        if not sure:
            return ""
        chosen = self._only(sure, "split", SPLITS, "split_column")
        self._remarks.append(f"the column {chosen!r} gives the splits")
        return chosen

    def _folders(self, path: str) -> bool:
        """Returns whether every path begins with the folder of a split."""
        options = self._options
        if not self._newer or self._file_split or options.split_column:
            return False
        if options.splits.strip() == NO_SPLITS or path in self._table.images:
            return False
        meant, first = set[str](), True
        for _, row in self._table.rows([path]):
            if isinstance(row, str):
                continue
            folder, slash, _ = clean_path(str(row.get(path) or "")).partition("/")
            split = self._meaning(folder) if slash else None
            if not split:
                return False
            meant.add(split)
            first = False
        if first or "train" not in meant or len(meant) < 2:
            return False
        self._remarks.append(
            "the first folder of each path gives the split; data.split_column="
            f"{NO_SPLITS!r} means that there are no splits"
        )
        return True

    def _meaning(self, value: str) -> str | None:
        given = self._options.named_splits
        return given.get(value) or split_names.canonical(value)

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
