"""Tables as data sets: one row per image, in a .csv, .tsv or .jsonl file.

Columns, in any order and among any others: the image's path, relative to the table's
folder (named image, path, file or filename); `label`, a string or a whole number, or
`labels`, any number of labels (separated by "|" in .csv and .tsv, a list in .jsonl);
optionally `weight`, a number of at least 0, and `split`. Without splits a tenth of the
images is held out. A folder with train.csv and val.csv (or test …) is one data set.
"""

import os
from collections.abc import Iterable

from vit_jax.data.sources.listings import (
    Entry,
    Files,
    Listing,
    UnknownClasses,
    hold_out,
    mixed,
)
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.protocol import in_order
from vit_jax.data.sources.table_rows import (
    EXPECTED,
    SPLITS,
    Problems,
    TableRow,
    read_rows,
)
from vit_jax.errors import UserError
from vit_jax.words import shortened

EXTENSIONS = (".csv", ".tsv", ".jsonl")
_LOOKED_FOR = 100  # files; if none of them exists, the paths are taken to be wrong


def split_files(folder: str) -> dict[str, str]:
    """Returns split → its table if the folder has tables for training and evaluation.

    Raises:
      UserError: a split has two tables.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        for extension in EXTENSIONS:
            path = os.path.join(folder, split + extension)
            if not os.path.isfile(path):
                continue
            if split in found:
                raise UserError(
                    f"{folder} has both {os.path.basename(found[split])} and "
                    f"{split}{extension}. Keep one of them."
                )
            found[split] = path
    return found if "train" in found and len(found) > 1 else {}


def read_tables(path: str, options: DataOptions = DEFAULT_OPTIONS) -> Listing:
    """Reads a table, or a folder with one table per split.

    Raises:
      UserError: a table cannot be read; rows cannot be used (lists all of them);
        classes to evaluate on are not trained on; or no image is where the table says.
    """
    path = os.path.abspath(path)
    files = split_files(path) if os.path.isdir(path) else {"": path}
    name = f"the table {path}"
    root = path if os.path.isdir(path) else os.path.dirname(path)
    rows, problems = list[TableRow](), Problems()
    kinds = {
        file: read_rows(file, split, rows, problems) for split, file in files.items()
    }
    problems.check()
    if len(set(kinds.values())) > 1:
        raise UserError(
            f"{name}: some tables have a column label, others labels. {EXPECTED}"
        )
    (several,) = set(kinds.values())
    train = [row for row in rows if row.split == "train"]
    if not train:
        found = sorted({row.split for row in rows})
        raise UserError(
            f"{name} has no row to train on, only {', '.join(found)}. {EXPECTED}"
        )
    _look_for(root, train[:_LOOKED_FOR], name)

    names = in_order(label for row in rows for label in row.labels)
    _check_number(names, several, name)
    entries = _entries(rows, names, several)
    if held_out := len(entries) == 1:
        entries = hold_out(entries["train"], options.hold_out, rules=options.rules)
    if not all(entries.values()):
        raise UserError(
            f"{name} has {len(rows)} row(s), too few to hold one out for evaluation. "
            "Add rows, or a split column."
        )
    listed = {split: Files.of(some) for split, some in entries.items()}
    listing = Listing(
        root, name, names, listed, "train", list(listed)[1], several, held_out
    )
    trained = {label for row in train for label in row.labels}
    unknown = [one for one in names if one not in trained]
    if unknown and not several:  # rare labels of many may be missing from a split
        raise UnknownClasses(
            f"{name} has classes to evaluate on that are not trained on: "
            f"{shortened(unknown, repr)}. Write them the same way in every split, or "
            "leave them out.",
            listing,
        )
    return listing


def _entries(
    rows: Iterable[TableRow], names: tuple[str, ...], several: bool
) -> dict[str, list[Entry]]:
    """Returns split → its entries, in the order of preference for evaluation."""
    label_of = {name: label for label, name in enumerate(names)}
    found: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for row in rows:
        labels = tuple(dict.fromkeys(label_of[label] for label in row.labels))
        label = labels if several else labels[0]
        found[row.split].append(Entry(row.path, label, row.weight))
    return {split: mixed(some) for split, some in found.items() if some}


def _check_number(names: tuple[str, ...], several: bool, name: str) -> None:
    if len(names) < (1 if several else 2):
        shown = f" ({names[0]!r})" if names else ""
        raise UserError(
            f"found {len(names)} class(es){shown} in {name}, expected at least "
            f"{1 if several else 2}. {EXPECTED}"
        )


def _look_for(root: str, rows: list[TableRow], name: str) -> None:
    """Raises UserError if none of the files exists.

    A single missing file is reported, and counted, when it is read.
    """
    first = os.path.join(root, rows[0].path)
    if not any(os.path.exists(os.path.join(root, row.path)) for row in rows):
        raise UserError(
            f"none of the first {len(rows)} images of {name} exists; the first was "
            f"expected at {first}. Write paths relative to the table's folder, or "
            "absolute ones."
        )
