"""Checked contents of files of images and labels as arrays, without the images."""

import os
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import numpy as np

from vit_jax.archives.npz import Header
from vit_jax.data.sources.array_files import idx, npz
from vit_jax.data.sources.listings import (
    Entry,
    hold_out,
    left_without,
    mixed,
)
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.split_names import EVALUATION_NAMES, role
from vit_jax.errors import UserError

SPLITS = ("train", *EVALUATION_NAMES)
_LAYOUTS = (
    "Expected images and labels; or train_images, train_labels, val_images, …; or "
    "x_train, y_train, x_test, y_test; or a folder of IDX files as MNIST has them. "
    "Images: uint8 [n, h, w] or [n, h, w, c]. "
    "Labels: whole numbers [n] or [n, 1] from 0, or zeros and ones [n, classes]."
)


class _Names(NamedTuple):
    """Names of the arrays of one split."""

    images: str
    labels: str
    weights: str


# Split → names of its arrays, for each naming scheme.
_SCHEMES: tuple[dict[str, _Names], ...] = (
    {"train": _Names("images", "labels", "weights")},
    {
        split: _Names(f"{split}_images", f"{split}_labels", f"{split}_weights")
        for split in SPLITS
    },
    {split: _Names(f"x_{split}", f"y_{split}", f"weights_{split}") for split in SPLITS},
)


class Part(NamedTuple):
    """One split: a selection of rows of one array.

    Attributes:
      images: name of the array.
      rows: int64 [n], in an order that mixes the classes; see `Listing.files`.
      labels: int32 [n], or bool [n, classes].
      weights: float64 [n].
    """

    images: str
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class ArrayFile(NamedTuple):
    """The contents of a file, except for its images.

    Attributes:
      version: state of the file when it was read; see `version`.
      held_out: see `DatasetInfo`.
      options: how it was read.
      remarks: sentences about what is held out and what is not used.
      problems: see `DatasetInfo`.
    """

    path: str
    version: tuple[int, int]
    class_names: tuple[str, ...]
    parts: dict[str, Part]
    multi_label: bool
    held_out: bool
    options: DataOptions
    remarks: tuple[str, ...] = ()
    problems: Mapping[str, UserError] = MappingProxyType({})

    @property
    def num_examples(self) -> dict[str, int]:
        return {split: len(part.rows) for split, part in self.parts.items()}


def version(path: str) -> tuple[int, int]:
    """Identifies the state of a file, or of IDX files, by modification time and size.

    Raises:
      UserError: a file cannot be read.
    """
    files = list(idx.find(path).values()) if os.path.isdir(path) else [path]
    try:
        stats = [os.stat(file) for file in files]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    times = max((stat.st_mtime_ns for stat in stats), default=0)
    return times, sum(stat.st_size for stat in stats)


def reader_of(path: str) -> ModuleType:
    """Returns the module that reads the arrays of a file, or of a folder of IDX files.

    It has `headers`, `read` and `checksums`.
    """
    return idx if os.path.isdir(path) else npz


def read_array_file(path: str, options: DataOptions = DEFAULT_OPTIONS) -> ArrayFile:
    """Checks a file and reads everything except the images.

    Raises:
      UserError: the file cannot be read, or its arrays cannot be used; lists all
        problems.
    """
    reader = reader_of(path)
    opened, headers = version(path), reader.headers(path)
    chosen = [
        {split: names for split, names in scheme.items() if names.images in headers}
        for scheme in _SCHEMES
    ]
    chosen = [scheme for scheme in chosen if "train" in scheme]
    if len(chosen) != 1:
        found = ", ".join(f"{name} {header}" for name, header in headers.items())
        raise UserError(
            f"{path} has {'images in several layouts' if chosen else 'no images'}; "
            f"found {found or 'no arrays'}. {_LAYOUTS}"
        )
    used = dict(chosen[0])
    unlabelled = {
        split: used.pop(split)
        for split, names in chosen[0].items()
        if role(split) == "test" and names.labels not in headers
    }
    problems: list[str] = []
    for names in used.values():
        problems += _wrong_headers(names, headers)
    _check(path, problems)
    labels, weights = {}, {}
    for split, names in used.items():
        labels[split] = reader.read(path, names.labels)
        weights[split] = _weights(path, names, len(labels[split]), headers, problems)
    known = reader.read(path, "class_names") if "class_names" in headers else None
    labels, class_names = _labels(used, labels, known, problems)
    _check(path, problems)

    several = labels["train"].ndim == 2
    parts, held_out = {}, len(used) == 1
    without = {
        split: f"{names.images} has no {names.labels} beside it"
        for split, names in unlabelled.items()
    }
    remarks = [f"{what}: not used" for what in without.values()]
    for split, names in used.items():
        entries = mixed(
            Entry(
                str(row),
                tuple(np.flatnonzero(label).tolist()) if several else int(label),
            )
            for row, label in enumerate(labels[split])
        )
        divided = {split: entries}
        if held_out:
            divided = hold_out(entries, options.hold_out, rules=options.rules)
            remarks.append(
                f"there is no split for evaluation: {len(divided['val']):,} of "
                f"{len(entries):,} images are held out for it "
                f"(data.hold_out={options.hold_out:g})"
            )
            remarks += left_without(divided, class_names)
        for name, some in divided.items():
            rows = np.array([int(entry.path) for entry in some], np.int64)
            parts[name] = Part(
                names.images, rows, labels[split][rows], weights[split][rows]
            )
    if not all(len(part.rows) for part in parts.values()):
        raise UserError(
            f"{path} has {len(labels['train'])} image(s), too few to hold one out for "
            "evaluation. Add images, or val_images and val_labels."
        )
    return ArrayFile(
        *(path, opened, class_names, parts, several, held_out, options),
        tuple(remarks),
        {split: UserError(f"{path}: {what}") for split, what in without.items()},
    )


def _check(path: str, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} cannot be used:{listed}\n{_LAYOUTS}")


def _wrong_headers(names: _Names, headers: dict[str, Header]) -> list[str]:
    """Lists problems that dtypes and shapes show before any array is read."""
    images = headers[names.images]
    wrong = []
    if images.dtype != np.uint8:
        wrong.append(
            f"{names.images} is {images}: expected uint8; scale them so that black is "
            "0 and white 255"
        )
    if len(images.shape) not in (3, 4) or 0 in images.shape:
        wrong.append(f"{names.images} is {images}: expected [n, h, w] or [n, h, w, c]")
    elif len(images.shape) == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        wrong.append(f"{names.images} is {images}: its channels must come last")
    labels = headers.get(names.labels)
    if labels is None:
        wrong.append(f"{names.images} has no {names.labels} beside it")
        return wrong
    columns = len(labels.shape) == 2 and labels.shape[1] > 1
    if not (labels.dtype.kind in "iu" or (labels.dtype.kind == "b" and columns)):
        wrong.append(f"{names.labels} is {labels}: expected whole numbers")
    if len(labels.shape) not in (1, 2) or labels.shape[1:] == (0,):
        wrong.append(
            f"{names.labels} is {labels}: expected [n], [n, 1] or [n, classes]"
        )
    for name in (names.labels, names.weights):
        other = headers.get(name)
        if other and other.shape[:1] != images.shape[:1]:
            wrong.append(f"{name} is {other}, but {names.images} is {images}")
    return wrong


def _weights(path, names: _Names, count: int, headers, problems) -> np.ndarray:
    header = headers.get(names.weights)
    if header is None:
        return np.ones(count)
    if header.dtype.kind not in "iuf" or len(header.shape) != 1:
        problems.append(f"{names.weights} is {header}: expected numbers [n]")
        return np.ones(count)
    weights = reader_of(path).read(path, names.weights).astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        problems.append(
            f"{names.weights}: {len(bad):,} values, the first {weights[bad[0]]} in row "
            f"{bad[0]}, are not numbers of at least 0"
        )
    return weights


def _labels(
    chosen: dict[str, _Names], labels: dict[str, np.ndarray], known, problems: list[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns labels by split, in the form of `Part.labels`, and the class names."""
    labels = {
        split: one[:, 0] if one.ndim == 2 and one.shape[1] == 1 else one
        for split, one in labels.items()
    }
    shapes = {one.shape[1:] for one in labels.values()}
    if len(shapes) > 1:
        problems.append("labels have different numbers of columns in different splits")
        return labels, ()
    (shape,) = shapes
    total = sum(len(one) for one in labels.values())
    least = shape[0] if shape else 1 + max(int(one.max()) for one in labels.values())
    for split, one in labels.items():
        wrong = (one < 0) | (one > 1) if shape else one < 0
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            expected = "0 or 1" if shape else "at least 0"
            problems.append(
                f"{chosen[split].labels}: {int(wrong.sum()):,} values, the first in "
                f"row {row}, are not {expected}"
            )
    if known is None and least > max(total, 2) and not shape:
        problems.append(
            f"labels go up to {least - 1:,}, but there are {total:,} examples: number "
            "the classes from 0"
        )
    if least < 2 and known is None:
        problems.append("found one class, expected at least two")
    names = _class_names(known, least, bool(shape), problems)
    kind = bool if shape else np.int32
    return {split: one.astype(kind) for split, one in labels.items()}, names


def _class_names(known, least: int, exactly: bool, problems) -> tuple[str, ...]:
    if known is None:
        # A wrong label, which `problems` reports, must not create a billion names.
        return () if problems else tuple(str(label) for label in range(least))
    if known.dtype.kind != "U" or known.ndim != 1:
        problems.append(
            f"class_names is {Header(known.shape, known.dtype)}: expected strings "
            "[classes]"
        )
        return ()
    names = tuple(known.tolist())
    if len(set(names)) < len(names):
        problems.append(
            f"class_names: only {len(set(names))} of {len(names)} names are distinct"
        )
    if len(names) < least or (exactly and len(names) != least):
        problems.append(f"class_names: {len(names)} names for {least} classes")
    return names
