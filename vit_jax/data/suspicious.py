"""Signs that a data set is not what it seems: facts that are possible, but unusual.

    an empty class, or a split for evaluation of one image
    class names that differ only in case, blanks or Unicode normalisation
    pixels of one colour, or a small part of the range of values
    equal files under two labels, or in two splits
    images in folders of thumbnails

Nothing here stops a run. Each check looks at no more than its limit, and says so.
"""

import collections
import hashlib
import itertools
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from vit_jax.data import any_format, depth
from vit_jax.data.formats import DecodeError
from vit_jax.data.preprocessing import to_pixels
from vit_jax.data.sources.listings import ListedImages
from vit_jax.data.sources.protocol import Example, Source
from vit_jax.errors import UserError
from vit_jax.words import shortened

_SAMPLED, _SAMPLED_AT_START = 48, 8  # images per split
_SECONDS, _SECONDS_AT_START = 5.0, 0.5  # for decoding the samples of a split
_MOST_FILES = 200_000  # whose sizes are compared
_MOST_BYTES = 2 << 30  # of files of equal size, which are read completely
_MOST_RECORDS = 5_000  # of examples that are not files
_PIECE = 1 << 20
_TRAIN, _EVAL = "the training data", "the split for evaluation"
_THUMBNAILS = re.compile(r"(?i)(^|/)[._]?thumb(nail)?s?/")
_FEW_IMAGES = 5  # of one colour, from which they are more than an exception


class _Range(NamedTuple):
    """The values of one image: smallest, largest, and that of white."""

    name: str
    least: float
    most: float
    white: float


def suspicious(
    sources: Mapping[str, Source],
    eval_split: str,
    white_level: float = 0.0,
    unreadable: list[str] | None = None,
    others: Mapping[str, Source] = MappingProxyType({}),
) -> list[str]:
    """Lists what is suspicious about a data set, a sentence for each sign.

    Takes seconds: a sample of each split in use is decoded, and files that have the
    same size are compared.

    Args:
      sources: split → its examples.
      eval_split: the split that is for evaluation.
      white_level: see `Preprocessing`.
      unreadable: gets the message about each sampled image that cannot be read.
      others: splits that are not in use, whose images may also be in those that are.
    """
    names = dict.fromkeys(
        name for source in sources.values() for name in source.class_names or ()
    )
    return [
        *_about_names(tuple(names)),
        *_about_labels(sources, eval_split),
        *itertools.chain.from_iterable(
            _about_pixels(
                split, _ranges(source, white_level, _SAMPLED, _SECONDS, unreadable)
            )
            for split, source in sources.items()
        ),
        *_about_copies({**sources, **others}),
        *_about_thumbnails(sources),
    ]


def suspicious_at_start(
    train: Source, held_out: Source, white_level: float
) -> list[str]:
    """Lists what is suspicious about the data of a run, in less than a second.

    Args:
      train: the training examples.
      held_out: the examples to evaluate on.
      white_level: see `Preprocessing`.
    """
    ranges = _ranges(train, white_level, _SAMPLED_AT_START, _SECONDS_AT_START)
    return [
        *_about_names(tuple(train.class_names or ())),
        *_about_labels({_TRAIN: train, _EVAL: held_out}, _EVAL),
        *_about_pixels(_TRAIN, ranges, exceptions=True),
    ]


def _about_names(names: Sequence[str]) -> Iterator[str]:
    alike = collections.defaultdict(list)
    for name in names:
        alike[_folded(name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            differences = {
                "in Unicode normalisation": lambda x: unicodedata.normalize("NFC", x),
                "in case": str.casefold,
                "in blanks": lambda x: "".join(x.split()),
            }
            only = [
                what
                for what, same in differences.items()
                if len(set(map(same, group))) < len(group)
            ]
            yield (
                f"the classes {shortened(group, ascii)} differ only "
                f"{' and '.join(only) or 'in case, blanks and Unicode normalisation'}"
            )


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(unicodedata.normalize("NFKC", plain).split())


def _about_labels(sources: Mapping[str, Source], eval_split: str) -> Iterator[str]:
    for split, source in sources.items():
        if split == eval_split and len(source) == 1:
            yield (f"{split} has one image, so its accuracy is 0 % or 100 %")
        if source.multi_label or getattr(source, "labels_take_long", False):
            continue
        labels = source.labels()
        counts = np.bincount(labels[labels >= 0], minlength=source.num_classes)
        if len(source) > 1 and not counts.all():
            names = source.class_names or range(source.num_classes)
            empty = [names[label] for label in np.flatnonzero(counts == 0)]
            yield (
                f"{split} has no image of "
                f"{len(empty):,} of {len(counts):,} classes: {shortened(empty, repr)}"
            )


def _ranges(
    source: Source,
    white_level: float,
    most: int,
    seconds: float,
    unreadable: list[str] | None = None,
) -> list[_Range]:
    """Reads the values of a few images, spread over the source."""
    found, end = [], time.monotonic() + seconds
    for index in np.unique(np.linspace(0, len(source) - 1, most, dtype=int)):
        if found and time.monotonic() > end:
            break
        try:
            example = source[int(index)]
            if len(example.image):  # empty files are counted by their size
                found.append(_range(example, white_level))
        except (DecodeError, OSError) as error:
            if unreadable is not None:
                unreadable.append(str(error))
    return found


def _range(example: Example, white_level: float) -> _Range:
    pixels, white = example.image, 255.0
    if isinstance(pixels, bytes):
        pixels, white = _values(pixels, example.name, white_level)
    return _Range(example.name, pixels.min().item(), pixels.max().item(), white)


def _values(data: bytes, name: str, white_level: float) -> tuple[np.ndarray, float]:
    """Returns an image's values before they become 8 bits, and that of white."""
    if not data.startswith(b"\xff\xd8"):  # JPEGs are never deep
        try:
            deep = any_format.deep_values(data, white_level)
        except Exception as error:  # Pillow raises a dozen types for broken files
            raise DecodeError(f"{name} cannot be decoded: {error}") from error
        if deep is not None:
            return deep
    channels = any_format.own_channels(data)
    return to_pixels(data, channels, name, white_level), 255.0


def _about_pixels(
    split: str, ranges: Sequence[_Range], *, exceptions: bool = False
) -> Iterator[str]:
    """Looks at the values of images; a few of one colour may be `exceptions`."""
    flat = [one for one in ranges if one.least == one.most]
    all_flat = len(flat) == len(ranges)
    many = all_flat or len(flat) >= _FEW_IMAGES or len(flat) * 4 >= len(ranges)
    if flat and (many or not exceptions):
        black = all(one.most == 0 for one in flat)
        names = shortened([one.name for one in flat], most=3)
        yield (
            f"{split}: {len(flat)} of {len(ranges)} sampled images are "
            f"{'completely black' if black else 'of one colour'}: {names}"
        )
    if not ranges or all_flat:
        return
    yield from _about_deep_pixels(split, ranges)
    least = min(one.least / one.white for one in ranges)
    most = max(one.most / one.white for one in ranges)
    smallest = min(ranges, key=lambda one: one.least / one.white)
    largest = max(ranges, key=lambda one: one.most / one.white)
    if most - least >= depth.NARROW or (least < depth.NARROW and largest.white > 255):
        return
    yield (
        f"{split}: all values of {len(ranges)} sampled images are between "
        f"{smallest.least:g} and {largest.most:g}, {most - least:.1%} of the range up "
        f"to white, which is {largest.white:g}. They may be labels or indices rather "
        "than brightness"
    )


def _about_deep_pixels(split: str, ranges: Sequence[_Range]) -> Iterator[str]:
    """Looks at images of more than 8 bits, which others may hide."""
    for white in sorted({one.white for one in ranges if one.white > 255}):
        deep = [one for one in ranges if one.white == white]
        if len(deep) == 1 < len(ranges):
            continue  # an exception
        least, most = min(one.least for one in deep), max(one.most for one in deep)
        if least < depth.NARROW * white and 0 < most < depth.NARROW_TOGETHER * white:
            yield (
                f"{split}: none of {len(deep)} sampled images "
                f"{depth.narrow(most, white)}"
            )


class _Item(NamedTuple):
    """An example whose content is compared with others."""

    split: str
    label: int | tuple[int, ...]
    name: str
    path: str  # "" if it is not a file


def _about_copies(sources: Mapping[str, Source]) -> Iterator[str]:
    """Compares files, and then other examples, as far as the limits allow."""
    same, looked_at = _equal_contents(sources)
    labels, splits = [], []
    for group in same:
        if len({item.label for item in group}) > 1:
            labels.append(group)
        elif len({item.split for item in group}) > 1:
            splits.append(group)
    names = next(iter(sources.values())).class_names if sources else ()

    def called(item: _Item) -> str:
        given = item.label if isinstance(item.label, tuple) else (item.label,)
        shown = [names[label] if names else str(label) for label in given]
        return f"{item.name} ({', '.join(shown)}, {item.split})"

    for what, groups in (("have several labels", labels), ("are in both", splits)):
        if groups:
            shown = shortened(
                [" = ".join(map(called, group[:3])) for group in groups],
                most=3,
                separator="; ",
            )
            where = " splits" if groups is splits else ""
            what = what.replace("both", "several") if len(sources) > 2 else what
            yield f"{len(groups):,} equal images {what}{where}{looked_at}: {shown}"


def _about_thumbnails(sources: Mapping[str, Source]) -> Iterator[str]:
    """Counts images in folders that programs name when they make small copies."""
    for split, source in sources.items():
        if not isinstance(source, ListedImages) or source.listing.reader:
            continue
        root = source.listing.path
        small = [
            path
            for path in map(source.path, range(min(len(source), _MOST_FILES)))
            if _THUMBNAILS.search(os.path.relpath(path, root))
        ]
        if 0 < len(small) < len(source):
            yield (
                f"{split}: {len(small):,} of {len(source):,} images are in folders of "
                f"thumbnails: {shortened(small, most=3)}"
            )


def _equal_contents(sources: Mapping[str, Source]) -> tuple[list[list[_Item]], str]:
    """Returns groups of equal images, and what was looked at if it is not everything.

    The same file in two splits is equal to itself, also under another name.
    """
    total = sum(map(len, sources.values()))
    files = {
        split: source
        for split, source in sources.items()
        if isinstance(source, ListedImages) and not source.listing.reader
    }
    if len(files) == len(sources):
        groups, limit = _files_of_equal_size(files), _MOST_FILES
    else:
        groups, limit = [_records(sources)], _MOST_RECORDS
    same, read = [], 0
    for group in groups:
        equal = collections.defaultdict(list)
        for item, content in group:
            digest, size = _digest(content)
            read += size
            if digest:
                equal[digest].append(item)
        same += [items for items in equal.values() if len(items) > 1]
        if read > _MOST_BYTES:
            return same, f" (after reading {read / 2**30:.1f} GiB, no more)"
    looked = f" (among {limit:,} of {total:,} images)" if total > limit else ""
    return same, looked


def _files_of_equal_size(
    sources: Mapping[str, ListedImages],
) -> list[Iterator[tuple[_Item, str]]]:
    """Groups files by size, smallest first, without those of a size of their own."""
    by_size = collections.defaultdict(list)
    share = _MOST_FILES // max(len(sources), 1)
    for split, source in sources.items():
        for index in range(min(len(source), share)):
            path, label = source.file(index)
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size:
                by_size[status.st_size].append((_Item(split, label, path, path), path))
    return [iter(by_size[size]) for size in sorted(by_size) if len(by_size[size]) > 1]


def _records(sources: Mapping[str, Source]) -> Iterator[tuple[_Item, bytes]]:
    share = _MOST_RECORDS // max(len(sources), 1)
    for split, source in sources.items():
        for index in range(min(len(source), share)):
            try:
                example = source[index]
            except (UserError, OSError):
                continue
            image = example.image
            content = image if isinstance(image, bytes) else image.tobytes()
            yield _Item(split, example.label, example.name, ""), content


def _digest(content: bytes | str) -> tuple[bytes, int]:
    """Returns the hash and number of bytes, or of a file's; b"" if it is unreadable."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        for piece in [content] if isinstance(content, bytes) else _pieces(content):
            digest.update(piece)
            size += len(piece)
    except OSError:
        return b"", size
    return digest.digest(), size


def _pieces(path: str) -> Iterable[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece
