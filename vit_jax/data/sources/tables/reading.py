"""Tables as data sets: one row per image, in a .csv, .tsv, .jsonl or .parquet file.

Columns, in any order and among any others: the image's path, relative to the table's
folder, or its bytes; its label, a string or a whole number, or any number of labels (in
one cell, separated by "|" or as a list, or as a column of zeros and ones per class);
optionally `weight`, a number of at least 0, and the split. columns.py knows the
usual names, and options give others. Without splits a part of the images is held out.
A folder of tables, one per split, is one data set; see folders.py.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

from vit_jax.data.sources import split_names
from vit_jax.data.sources.array_files.reading import version
from vit_jax.data.sources.listings import (
    Entry,
    Files,
    Listing,
    NotForTraining,
    hold_out,
    left_without,
    mixed,
)
from vit_jax.data.sources.options import (
    DEFAULT_OPTIONS,
    FIRST_RULES,
    NO_SPLITS,
    DataOptions,
)
from vit_jax.data.sources.protocol import in_order
from vit_jax.data.sources.tables import checks
from vit_jax.data.sources.tables.columns import Columns, choose, known
from vit_jax.data.sources.tables.files import Table, normal, open_table
from vit_jax.data.sources.tables.folders import find_tables, not_read
from vit_jax.data.sources.tables.parquet import EmbeddedImage, ParquetTable
from vit_jax.data.sources.tables.parquet_images import EmbeddedFile, ImageReader
from vit_jax.data.sources.tables.paths import LOOKED_FOR, Place, check_exist
from vit_jax.data.sources.tables.rows import EXPECTED, Rows, TableRow
from vit_jax.errors import UserError
from vit_jax.words import shortened

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0+)?")


def read_tables(path: str, options: DataOptions = DEFAULT_OPTIONS) -> Listing:
    """Reads a table, or a folder with tables.

    Raises:
      UserError: a table cannot be read; rows cannot be used or contradict each other
        (lists all of them); or no image is where the table says. A `NotForTraining` if
        there is no row or one class to train on, or nothing to hold out. A split for
        evaluation with classes that are not trained on is in `Listing.problems`.
    """
    return _Reading(os.path.abspath(path), options).listing()


class _Reading:
    """The reading of a data set's tables, step by step."""

    def __init__(self, path: str, options: DataOptions):
        self._options = options
        self._name = f"the table {path}"
        self._files, self._root = {path: ""}, os.path.dirname(path)
        self._remarks: list[str] = []
        if os.path.isdir(path):
            found = find_tables(path, options)
            if found is None:
                raise UserError(
                    f"{path} has no table: expected one such as labels.csv, or one for "
                    "each split (train.csv and val.csv, or test.csv)"
                )
            self._files, self._root = found.files, path
            if others := not_read(path, found.files):
                self._remarks.append(
                    f"labels are those of {found.names}; not read: {shortened(others)}"
                )
        self._rows = Rows()
        self._problems: dict[str, UserError] = {}
        self._embedded: dict[str, EmbeddedFile] = {}
        self._declared: set[str] = set()  # classes that the tables name themselves
        self._one_hot = False
        self._untrainable = ""  # why no run can train on the rows

    def listing(self) -> Listing:
        several = self._read()
        rows, name = self._rows.usable, self._name
        unknown = {} if several else _unknown_classes(rows)
        evaluated = _in_preference({row.split for row in rows} - {"train"})
        if not evaluated or evaluated[0] not in unknown:
            self._remarks += [
                f"not used: {split} has {_sentence(those)}"
                for split, those in unknown.items()
            ]
        usable = [row for row in rows if row.split not in unknown]
        listing = self._made(usable, several, evaluated)
        untrainable = self._untrainable
        if unknown:
            complete = self._made(rows, several, evaluated)
            self._problems |= {
                split: NotForTraining(
                    f"{name}: {split} has {_sentence(those)}", complete
                )
                for split, those in unknown.items()
            }
            listing = dataclasses.replace(listing, problems=self._problems)
        if untrainable:
            raise NotForTraining(untrainable, listing)
        return listing

    def _made(
        self, rows: list[TableRow], several: bool, evaluated: list[str]
    ) -> Listing:
        """Makes the listing of some rows; notes if no run can train on it.

        Args:
          rows: the rows.
          several: whether an image may have several labels.
          evaluated: splits to evaluate on, the preferred one first.
        """
        name = self._name
        found = {label for row in rows for label in row.labels}
        names = in_order(found | self._declared)
        self._untrainable = _wrong_number(names, several, name)
        if not names:
            raise UserError(self._untrainable)
        entries = _entries(rows, names, several)
        trained = "train" in entries
        if not trained:
            splits = ", ".join(evaluated)
            self._untrainable = (
                f"{name} has no row to train on, only {splits}. To use all of its rows "
                f"alike, pass data.split_column={NO_SPLITS!r}. {EXPECTED}"
            )
        held_out = False
        if not evaluated:
            divided = self._held_out(entries["train"], names)
            if held_out := bool(divided["val"]):
                entries = divided
            evaluated = ["val" if held_out else "train"]
        return Listing(
            self._root,
            name,
            names,
            {split: Files.of(some) for split, some in entries.items()},
            "train" if trained else "",
            evaluated[0],
            several,
            held_out,
            remarks=tuple(self._remarks),
            problems=dict(self._problems),
            reader=ImageReader(self._root, self._embedded) if self._embedded else None,
        )

    @staticmethod
    def _said(remarks: Iterable[str]) -> str:
        """Writes remarks as sentences at the end of a message."""
        return "".join(f" Note that {remark}." for remark in remarks)

    def _held_out(
        self, entries: list[Entry], names: tuple[str, ...]
    ) -> dict[str, list[Entry]]:
        """Holds out a part of the training data; notes if there is none to hold out."""
        options, groups = self._options, None
        if options.group_column:
            group_of = {row.path: row.group for row in self._rows.usable}
            groups = [group_of[entry.path] for entry in entries]
        divided = hold_out(entries, options.hold_out, groups, rules=options.rules)
        if not divided["val"]:
            self._untrainable = self._untrainable or (
                f"{self._name} has {len(entries):,} row(s) of {len(names):,} classes, "
                + (
                    f"all in one group of data.group_column={options.group_column!r}: "
                    "a group cannot be divided. Omit that option"
                    if len(entries) > 1 and groups and set(groups) != {""}
                    else "too few to hold one out for evaluation: no class has two "
                    "images. Add rows"
                )
                + ", or a split column."
                + self._said(checks.amounts(names))
            )
            return divided
        self._remarks.append(
            f"there is no split for evaluation: {len(divided['val']):,} of "
            f"{len(entries):,} images are held out for it "
            f"(data.hold_out={options.hold_out:g})"
        )
        self._remarks += left_without(divided, names)
        return divided

    def _read(self) -> bool:
        """Reads all rows and returns whether an image may have several labels."""
        rows, options = self._rows, self._options
        tables = self._opened()
        for table, columns, split in tables:
            place = Place(table.file, self._root, options)
            rows.read(table, columns, split, place, options)
        several = any(columns.several for _, columns, _ in tables)
        if self._one_hot:
            several = any(len(row.labels) != 1 for row in rows.usable)
        if options.rules > FIRST_RULES:
            rows.usable = _respelled(rows.usable)
            complete = not rows.problems  # else classes may be missing because of them
            if several and not self._one_hot:
                checks.add_vectors(rows.usable, rows.problems)
                rows.usable, remarks = checks.united(rows.usable, self._root)
                self._remarks += remarks
            checks.add_contradictions(
                rows.usable, rows.problems, options.label_separator, self._root
            )
            self._check_named()
            unknown = {} if several else _unknown_classes(rows.usable)
            if complete and rows.problems and unknown:
                every = {name for some in unknown.values() for name in some}
                rows.problems.add(_sentence(in_order(every)))
        rows.check()
        self._leave_out_unlabelled()
        train = [row for row in rows.usable if row.split == "train"]
        self._look_for(tables, train or rows.usable)
        self._remark_on(several)
        return several

    def _check_named(self) -> None:
        """Adds a problem for each value that `data.splits` names and no row has."""
        if not self._rows.divided:
            return
        files = {part for file in self._files for part in file.split(os.sep)}
        for value in self._options.named_splits:
            if value not in self._rows.named and value not in files:
                self._rows.problems.add(
                    f"data.splits={self._options.splits!r}: no row has {value!r}"
                )

    def _opened(self) -> list[tuple[Table, Columns, str]]:
        """Opens the tables and chooses their columns."""
        options, tables = self._options, []
        own = {options.path_column, options.split_column, options.group_column}
        own = {normal(name) for name in own | set(options.label_columns.split(","))}

        def is_known(name: str) -> bool:
            return known(name) or normal(name) in own

        for file, split in self._files.items():
            table = open_table(file, is_known)
            columns, wrong, remarks = choose(table, options, split)
            for problem in wrong:
                self._rows.problems.add(f"{table.name}: {problem}")
            self._remarks += [f"{table.name}: {remark}" for remark in remarks]
            if not wrong:
                tables.append((table, columns, split))
                self._note(table, columns)
            elif columns.path and split in ("", "train"):
                self._look_for_first(table, columns.path)
        labelled = [columns for _, columns, _ in tables if columns.labels]
        named = {normal(one.labels[0]) for one in labelled if not one.one_hot}
        if len({one.one_hot for one in labelled}) > 1 or {"label", "labels"} <= named:
            self._rows.problems.check()
            raise UserError(
                f"{self._name}: some tables have a column label, others labels. "
                f"{EXPECTED}"
            )
        several = any(one.several for one in labelled)
        return [
            (table, dataclasses.replace(columns, several=several), split)
            for table, columns, split in tables
        ]

    def _note(self, table: Table, columns: Columns) -> None:
        """Notes which classes a table declares, and which images it embeds."""
        if columns.one_hot:
            self._one_hot = True
            self._declared |= set(columns.labels)
        elif columns.labels:
            self._declared |= set(table.class_names.get(columns.labels[0], ()))
        if isinstance(table, ParquetTable) and columns.path in table.bytes_column:
            file = os.path.relpath(table.file, self._root).replace(os.sep, "/")
            self._embedded[file] = EmbeddedFile(
                table.bytes_column[columns.path], version(table.file)
            )

    def _leave_out_unlabelled(self) -> None:
        """Leaves out splits for testing without any label."""
        rows = self._rows
        unlabelled = collections.Counter(rows.unlabelled)
        if self._options.rules > FIRST_RULES:
            labelled = {row.split for row in rows.usable if row.labels}
            for row in rows.usable:
                if split_names.role(row.split) == "test" and row.split not in labelled:
                    unlabelled[row.split] += 1
            rows.usable = [row for row in rows.usable if row.split not in unlabelled]
        for split, count in unlabelled.items():
            problem = f"the split {split} has no labels: its {count:,} row(s) are "
            self._remarks.append(f"{problem}left out")
            self._problems[split] = UserError(f"{self._name}: {problem}of no use here")

    def _look_for(self, tables, rows: list[TableRow]) -> None:
        """Raises UserError if none of the first images of these rows exists.

        Remarks on it if some do not.
        """
        paths = [row.path for row in rows[:LOOKED_FOR] if not self._is_embedded(row)]
        if not paths:
            return

        def cells() -> list[str]:
            found = (
                row[columns.path]
                for table, columns, split in tables
                if split in ("", "train")
                for _, row in table.rows([columns.path])
                if isinstance(row, dict) and row.get(columns.path)
            )
            texts = (str(one) for one in found if not isinstance(one, EmbeddedImage))
            return list(itertools.islice(texts, LOOKED_FOR))

        self._remarks += check_exist(self._root, paths, self._name, cells)

    def _look_for_first(self, table: Table, column: str) -> None:
        """Adds a problem if none of the first images of an unusable table exists."""
        place = Place(table.file, self._root, self._options)
        cells = [
            str(row[column])
            for _, row in itertools.islice(table.rows([column]), LOOKED_FOR)
            if isinstance(row, dict)
            and row.get(column)
            and not isinstance(row[column], EmbeddedImage)
        ]
        with contextlib.suppress(ValueError):
            paths = [place(cell) for cell in cells]
            try:
                if paths:
                    check_exist(self._root, paths, table.name, lambda: cells)
            except UserError as error:
                self._rows.problems.add(str(error))

    def _is_embedded(self, row: TableRow) -> bool:
        return row.path.endswith("]") and row.path.rpartition("[")[0] in self._embedded

    def _remark_on(self, several: bool) -> None:
        rows, options = self._rows, self._options
        if rows.unnamed:
            values = [f"{value!r} ({n:,})" for value, n in sorted(rows.unnamed.items())]
            self._remarks.append(
                f"{rows.unnamed.total():,} row(s) are not used, because data.splits "
                f"does not name their split: {shortened(values)}"
            )
        self._remarks += checks.repeated(rows.usable, self._root)
        self._remarks += checks.shared_groups(rows.usable)
        names = {one for row in rows.usable for one in row.labels}
        self._remarks += checks.similar_names(sorted(names))
        self._remarks += checks.missing_values(sorted(names))
        self._remarks += checks.weighted(rows.usable)
        if self._one_hot:
            self._remarks += checks.nearly_exclusive(rows.usable)
        elif several:
            remarks = checks.unseparated(rows.usable, options.label_separator)
            self._remarks += remarks or self._all_single()
        elif options.rules > FIRST_RULES:
            self._remarks += checks.amounts(sorted(names))

    def _all_single(self) -> list[str]:
        """Returns a remark if each row has one label where it could have several."""
        if any(len(row.labels) != 1 for row in self._rows.usable):
            return []
        return [
            "each image has one label, but the column's name or type says that it may "
            "have several: a class does not exclude the others. "
            "data.label_columns names a column of one label per row"
        ]


def _unknown_classes(rows: Iterable[TableRow]) -> dict[str, tuple[str, ...]]:
    """Returns split → its classes that are not trained on, if there are any."""
    classes: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        classes[row.split].update(row.labels)
    trained = classes.get("train")
    if not trained:
        return {}
    unknown = {split: some - trained for split, some in classes.items()}
    return {split: in_order(some) for split, some in unknown.items() if some}


def _in_preference(splits: Iterable[str]) -> list[str]:
    """Sorts splits by the preference for evaluation."""
    usual = split_names.PLAIN_NAMES
    return sorted(
        splits, key=lambda one: (usual.index(one) if one in usual else len(usual), one)
    )


def _sentence(unknown: Sequence[str]) -> str:
    return (
        "classes to evaluate on that are not trained on: "
        f"{shortened(unknown, repr)}. Write them the same way in every split, or "
        "leave them out."
    )


def _entries(
    rows: Iterable[TableRow], names: tuple[str, ...], several: bool
) -> dict[str, list[Entry]]:
    """Returns split → its entries, in the order of preference for evaluation."""
    label_of = {name: label for label, name in enumerate(names)}
    found: dict[str, list[Entry]] = {split: [] for split in split_names.PLAIN_NAMES}
    for row in rows:
        labels = tuple(dict.fromkeys(label_of[label] for label in row.labels))
        label = labels if several else labels[0]
        found.setdefault(row.split, []).append(Entry(row.path, label, row.weight))
    return {split: mixed(some) for split, some in found.items() if some}


def _respelled(rows: list[TableRow]) -> list[TableRow]:
    """Spells each label in one way: composed characters, and whole numbers as such.

    "3.0" becomes "3" if all labels are whole numbers, as pandas writes those of a
    column with an empty cell.
    """
    names = {label for row in rows for label in row.labels}
    new = {name: unicodedata.normalize("NFC", name) for name in names}
    if all(map(_WHOLE.fullmatch, names)):
        new = {name: name.partition(".")[0] for name in names}
    if all(name == same for name, same in new.items()):
        return rows
    return [row._replace(labels=[new[label] for label in row.labels]) for row in rows]


def _wrong_number(names: tuple[str, ...], several: bool, name: str) -> str:
    """Says that there are too few classes to train on; "" if there are enough."""
    if len(names) >= (1 if several else 2):
        return ""
    shown = f" ({names[0]!r})" if names else ""
    return (
        f"found {len(names)} class(es){shown} in {name}, expected at least "
        f"{1 if several else 2}. {EXPECTED}"
    )
