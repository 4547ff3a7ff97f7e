"""Folders that hold tables: which files they are, and for which splits.

train.csv val.csv …             a table for each split, under any of its names
metadata.csv (or .jsonl, .parquet), in the folder or in each split's folder
Hugging Face's image folders
[data/]train-00000-of-00004.parquet …, or train/0000.parquet …
labels.csv                      any one table beside folders of images
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from vit_jax.data.sources import split_names
from vit_jax.data.sources.image_files import Scanned, Walker
from vit_jax.data.sources.not_classes import named_as_parts
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.tables.columns import PATHS, known
from vit_jax.data.sources.tables.files import (
    EXTENSIONS,
    PARQUET,
    normal,
    open_table,
)
from vit_jax.errors import UserError
from vit_jax.words import shortened

_TEXT = tuple(ending for ending in EXTENSIONS if ending != PARQUET)
_METADATA = tuple(f"metadata{ending}" for ending in EXTENSIONS)
# Words of a file's name beside the split: "train_labels.csv".
_NEUTRAL = re.compile(
    r"(?i)(?<![a-z])(labels?|annotations?|metadata|info|list|table|index|csv)(?![a-z])"
)
_SHARD = re.compile(r"[-_.]?[0-9]+([-_]of[-_][0-9]+)?([-_.][0-9a-f]{8,})?$")
_FEW_FOLDERS = 8  # of other names, which may hold Parquet files


class Found(NamedTuple):
    """The tables of a folder.

    Attributes:
      files: path of each table → its split; "" = its rows say it.
      sure: whether no other layout is possible, even beside folders of classes.
    """

    files: dict[str, str]
    sure: bool = False

    @property
    def names(self) -> str:
        """The names of the files, for messages."""
        return shortened([os.path.basename(file) for file in self.files], most=3)


def find_tables(folder: str, options: DataOptions) -> Found | None:
    """Finds the tables of a folder; None if there are none to be taken for a data set.

    Raises:
      UserError: a split has two tables.
    """
    walker = Walker(options.rules)
    if found := _split_files(folder, options, walker):
        return Found(found, sure=True)
    if options.rules == FIRST_RULES:
        return None
    for find in (_metadata, _shards):
        if found := find(folder, options, walker):
            return Found(found)
    file = _only_table(folder, options, walker)
    return Found({file: ""}) if file else None


def class_folders(folder: str, options: DataOptions) -> int:
    """Counts the folders that could be classes, as far as it has to: up to two.

    They are those in the folder, or in that of its training split, unless they are
    named like parts: images_001, images_002.
    """
    walker = Walker(options.rules)
    below = _scan(walker, folder).folders
    train = [name for name in below if _split_of(name, options) == "train"]
    if train:
        root = os.path.join(folder, train[0])
        below = _scan(walker, root).folders
    else:
        root = folder
        if all(_split_of(name, options) for name in below):
            return 0
    count = 0
    if named_as_parts(below):
        return 0
    for name in below:
        with contextlib.suppress(OSError):  # whoever reads the folder reports it
            count += walker.has_images(os.path.join(root, name))
        if count == 2:
            break
    return count


def _split_files(folder: str, options: DataOptions, walker: Walker) -> dict[str, str]:
    """Returns table → split if there are tables for training and evaluation."""
    names = _files(walker, folder, _TEXT)
    by_split: dict[str, list[str]] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in split_names.PLAIN_NAMES:
            by_split.setdefault(stem, []).append(name)
    if options.rules > FIRST_RULES:
        roles = {split_names.role(split) for split in by_split}
        for name in names:
            split = _table_split(name, options)
            if split and split_names.role(split) not in roles:
                by_split.setdefault(split_names.role(split), []).append(name)
    if "train" not in by_split or len(by_split) < 2:
        return {}
    found = {}
    for split in sorted(by_split, key=_place_of):
        if len(by_split[split]) > 1:
            raise UserError(
                f"{folder} has both {' and '.join(sorted(by_split[split]))}. Keep one "
                "of them."
            )
        found[os.path.join(folder, by_split[split][0])] = split
    return found


def _metadata(folder: str, options: DataOptions, walker: Walker) -> dict[str, str]:
    """Returns the tables of one of Hugging Face's image folders."""
    names = _files(walker, folder, EXTENSIONS)
    if here := [name for name in names if name.lower() in _METADATA]:
        return {os.path.join(folder, here[0]): ""}
    found: dict[str, str] = {}
    for name in _scan(walker, folder).folders:
        split = _split_of(name, options)
        if not split:
            continue
        below = os.path.join(folder, name)
        files = _files(walker, below, EXTENSIONS)
        here = [file for file in files if file.lower() in _METADATA]
        if not here:
            continue
        if split in found.values():
            raise UserError(
                f"{folder} has several folders with metadata for the split {split}; "
                "set data.splits to the one to use"
            )
        found[os.path.join(below, here[0])] = split
    return found if "train" in found.values() else {}


def _shards(folder: str, options: DataOptions, walker: Walker) -> dict[str, str]:
    """Returns Parquet file → split, if every file's name or folder is a split's."""
    files = [*_parquet_files(folder, options, walker)]
    found = {}
    for file in files:
        stem = _SHARD.sub("", os.path.splitext(os.path.basename(file))[0])
        above = os.path.relpath(os.path.dirname(file), folder).split(os.sep)
        parts = (stem, *reversed(above))
        found[file] = next(filter(None, (_split_of(p, options) for p in parts)), "")
    if len(set(map(bool, found.values()))) > 1:
        without = [os.path.relpath(file, folder) for file in files if not found[file]]
        raise UserError(
            f"{folder} has Parquet files of splits and others: "
            f"{shortened(without)}. Name one folder or file, or set data.splits to "
            "what the names mean."
        )
    return dict(sorted(found.items(), key=lambda one: (_place_of(one[1]), one[0])))


def _parquet_files(
    folder: str, options: DataOptions, walker: Walker, depth: int = 2
) -> Iterator[str]:
    """Finds Parquet files, without listing what may be a thousand folders of classes.

    Entered are folders named like a split or "data", and a few others at the top.
    """
    for name in _files(walker, folder, (PARQUET,)):
        yield os.path.join(folder, name)
    below = _scan(walker, folder).folders if depth else []
    others = [name for name in below if name != "data" and not _split_of(name, options)]
    if depth == 1 or len(others) > _FEW_FOLDERS:
        below = [name for name in below if name not in set(others)]
    for name in below:
        path = os.path.join(folder, name)
        yield from _parquet_files(path, options, walker, depth - 1)


def _only_table(folder: str, options: DataOptions, walker: Walker) -> str:
    """Returns the only table with a column of images; "" without one.

    Of several the only one for training is taken, and never a file of predictions.

    Raises:
      UserError: there are several.
    """
    found = []
    for name in _files(walker, folder, _TEXT):
        if "submission" in name.lower():
            continue
        file = os.path.join(folder, name)
        try:
            columns = open_table(file, known).columns
        except UserError:
            continue
        if any(normal(column) in tier for tier in PATHS for column in columns):
            found.append(file)
    train = [file for file in found if _table_split(file, options) == "train"]
    if len(train) == 1:
        return train[0]
    if len(found) > 1 and class_folders(folder, options) < 2:
        names = shortened([os.path.basename(file) for file in found])
        raise UserError(
            f"{folder} has several tables: {names}. Name the one to use as the dataset."
        )
    return found[0] if len(found) == 1 else ""


def _place_of(split: str) -> int:
    """Returns the place of a split in the order of preference for evaluation."""
    usual = split_names.PLAIN_NAMES
    return usual.index(split) if split in usual else len(usual)


def _table_split(file: str, options: DataOptions) -> str | None:
    """Returns the split that the name of a table means: "train_labels.csv"."""
    name = os.path.basename(file)
    stem = _NEUTRAL.sub(" ", os.path.splitext(name)[0])
    return options.named_splits.get(name) or split_names.canonical(stem)


def _split_of(name: str, options: DataOptions) -> str | None:
    return options.named_splits.get(name) or split_names.canonical(name)


def _files(walker: Walker, folder: str, endings: tuple[str, ...]) -> list[str]:
    """Returns the names of files with these endings, sorted."""
    names = _scan(walker, folder).files
    return [name for name in names if name.lower().endswith(endings)]


def _scan(walker: Walker, folder: str) -> Scanned:
    try:
        return walker.scan(folder)
    except OSError:  # whoever reads the folder reports it
        return Scanned([], [], {})
