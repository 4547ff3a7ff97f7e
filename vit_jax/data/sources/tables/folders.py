"""Folders that hold tables: which files they are, and for which splits.

train.csv val.csv …             a table for each split, under any of its names
metadata.csv (or .jsonl, .parquet), in the folder or in each split's folder; or any one
                                table in each split's
Hugging Face's image folders
[data/]train-00000-of-00004.parquet …, or train/0000.parquet …
labels.csv                      any one table beside folders of images
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vit_jax.data.sources import split_names
from vit_jax.data.sources.image_files import Scanned, Walker
from vit_jax.data.sources.not_classes import mere_parts
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.tables.columns import PATHS, known
from vit_jax.data.sources.tables.files import (
    EXTENSIONS,
    OTHER_EXTENSIONS,
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
    r"(?i)(?<![a-z])(labels?|annotations?|ground[-_ ]?truth|metadata|info|list|table"
    r"|index|csv)(?![a-z])"
)
_SHARD = re.compile(r"[-_.]?[0-9]+([-_]of[-_](?P<count>[0-9]+))?([-_.][0-9a-f]{8,})?$")
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
        names = dict.fromkeys(os.path.basename(file) for file in self.files)
        return shortened([*names], most=3)


class ClassFolders(NamedTuple):
    """Numbers of folders that could be classes, as far as they matter: up to two.

    Attributes:
      all: those with images.
      likely: of these, those without a name such as "images_001".
    """

    all: int
    likely: int


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


def class_folders(folder: str, options: DataOptions) -> ClassFolders:
    """Counts the folders that could be classes.

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
            return ClassFolders(0, 0)
    parts, count, likely = mere_parts(below), 0, 0
    for name in below:
        with contextlib.suppress(OSError):  # whoever reads the folder reports it
            if walker.has_images(os.path.join(root, name)):
                count += 1
                likely += name not in parts
        if likely == 2:
            break
    return ClassFolders(min(count, 2), likely)


def _split_files(folder: str, options: DataOptions, walker: Walker) -> dict[str, str]:
    """Returns table → split if there are tables for training and evaluation."""
    names = _files(walker, folder, _TEXT)
    given = options.named_splits
    if here := [name for name in names if name in given]:
        return {os.path.join(folder, name): given[name] for name in here}
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
                "of them, or name the tables to use, as in "
                f"data.splits='{split}={by_split[split][0]}'."
            )
        found[os.path.join(folder, by_split[split][0])] = split
    return found


def _metadata(folder: str, options: DataOptions, walker: Walker) -> dict[str, str]:
    """Returns the tables of one of Hugging Face's image folders, or of each split's."""
    names = _files(walker, folder, EXTENSIONS)
    if here := [name for name in names if name.lower() in _METADATA]:
        return {_only_metadata(folder, here): ""}
    found: dict[str, str] = {}
    for name in _scan(walker, folder).folders:
        split = _split_of(name, options)
        if not split:
            continue
        below = os.path.join(folder, name)
        files = _files(walker, below, EXTENSIONS)
        here = [file for file in files if file.lower() in _METADATA]
        if not here:  # then the only table, such as Roboflow's _classes.csv
            here = [file for file in files if _names_images(os.path.join(below, file))]
            here = here if len(here) == 1 else []
        if not here:
            continue
        if split in found.values():
            raise UserError(
                f"{folder} has several folders with metadata for the split {split}; "
                "set data.splits to the one to use"
            )
        found[_only_metadata(below, here)] = split
    return found if "train" in found.values() else {}


def _only_metadata(folder: str, names: list[str]) -> str:
    """Returns the path of the only table of metadata.

    Raises:
      UserError: there are several, of which the labels may differ.
    """
    if len(names) > 1:
        raise UserError(
            f"{folder} has both {' and '.join(names)}. Name the one to use as the "
            "dataset, or keep one of them."
        )
    return os.path.join(folder, names[0])


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
    _check_shards(folder, found, options)
    return dict(sorted(found.items(), key=lambda one: (_place_of(one[1]), one[0])))


def _check_shards(folder: str, found: dict[str, str], options: DataOptions) -> None:
    """Raises UserError if files of a split are missing or of several data sets."""
    series: dict[tuple[str, str], list[str]] = {}
    sets: dict[str, dict[str, str]] = {}
    for file, split in found.items():
        below = os.path.relpath(os.path.dirname(file), folder)
        others = [one for one in below.split(os.sep) if not _split_of(one, options)]
        sets.setdefault(split, {})[os.path.join(*others, "")] = below
        stem = os.path.splitext(os.path.basename(file))[0]
        if (shard := _SHARD.search(stem)) and shard["count"]:
            series.setdefault((stem[: shard.start()], shard["count"]), []).append(file)
    for split, folders in sets.items():
        if len(folders) > 1:
            raise UserError(
                f"{folder} has Parquet files of {split or 'the same split'} in several "
                f"folders: {shortened(sorted(folders.values()))}. Name the one to use "
                "as the dataset."
            )
    for (name, count), files in series.items():
        if len(files) != int(count):
            raise UserError(
                f"{folder} has {len(files)} of {int(count)} files of the series "
                f"{name}-…-of-{count}: complete it, or name one file as the dataset."
            )


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
        file = os.path.join(folder, name)
        if _names_images(file):
            found.append(file)
    train = [file for file in found if _table_split(file, options) == "train"]
    if len(train) == 1:
        return train[0]
    if len(found) > 1 and class_folders(folder, options).likely < 2:
        names = shortened([os.path.basename(file) for file in found])
        raise UserError(
            f"{folder} has several tables: {names}. Name the one to use as the dataset."
        )
    return found[0] if len(found) == 1 else ""


def _names_images(file: str) -> bool:
    """Returns whether a file is a text table of images, but not of predictions."""
    name = os.path.basename(file).lower()
    if "submission" in name or not name.endswith(_TEXT):
        return False
    try:
        columns = open_table(file, known).columns
    except UserError:
        return False
    return any(normal(column) in tier for tier in PATHS for column in columns)


def not_read(folder: str, files: Iterable[str]) -> list[str]:
    """Lists the tables and arrays in a folder that are not among the data set's files.

    Args:
      folder: the data set's folder.
      files: the tables that are read.
    """
    endings = (*EXTENSIONS, *OTHER_EXTENSIONS, ".npz")
    taken = {os.path.abspath(file) for file in files}
    names = _files(Walker(), folder, endings)
    return [name for name in names if os.path.join(folder, name) not in taken]


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
