"""The shards of a prepared set: dividing the images among files and writing these."""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.data.decode import DecodeError, UnsuitableImage, decode
from vit_jax.data.preprocessing import read_file
from vit_jax.data.sources.listings import Files, Listing, Ragged
from vit_jax.data.sources.tfds_labels import WEIGHT_KEY
from vit_jax.files import atomic_write

FORMAT = 1  # increment when the same files would give other records
_WAITING = 64  # images read ahead; bounds the memory
_T = TypeVar("_T")
_R = TypeVar("_R")


class Shard(NamedTuple):
    """The examples `rows` of a split, in one file.

    Attributes:
      identity: hash of everything that the records depend on.
    """

    split: str
    file: str
    rows: range
    identity: str

    @property
    def note(self) -> str:
        """The file that marks the shard as finished and describes its contents."""
        return f"{self.file}.json"


def plan(listing: Listing, name: str, shard_bytes: int, pool: Executor) -> list[Shard]:
    """Divides every split into files of about `shard_bytes`."""
    shards = []
    for split, files in listing.files.items():
        paths = [os.path.join(listing.path, path) for path in files.paths.texts()]
        batches = (paths[k : k + 1000] for k in range(0, len(paths), 1000))
        stats = np.concatenate(list(_ahead(pool, _sizes_and_times, batches)))
        ends = np.cumsum(stats[:, 0])
        count = max(1, min(math.ceil(ends[-1] / shard_bytes), len(files)))
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
        rows = [0, *np.maximum.accumulate(cuts).tolist(), len(files)]
        for number, (first, last) in enumerate(itertools.pairwise(rows)):
            file = f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"
            identity = _identity(listing, files, stats, first, last)
            shards.append(Shard(split, file, range(first, last), identity))
    return shards


def _sizes_and_times(paths: list[str]) -> np.ndarray:
    """Returns sizes and modification times (ns), int64 [n, 2]; 0 for missing files."""
    found = np.zeros((len(paths), 2), np.int64)
    for row, path in enumerate(paths):
        with contextlib.suppress(OSError):  # reported when it is read
            stat = os.stat(path)
            found[row] = stat.st_size, stat.st_mtime_ns
    return found


def _identity(
    listing: Listing, files: Files, stats: np.ndarray, first: int, last: int
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((FORMAT, listing.class_names, first, last)).encode("utf-8"))
    columns = [files.paths, files.labels, files.weights, stats]
    for column in columns:
        if isinstance(column, Ragged):
            ends = column.ends[first : last + 1]
            digest.update(np.ascontiguousarray(ends - ends[0]).tobytes())
            digest.update(column.flat[ends[0] : ends[-1]].tobytes())
        else:
            digest.update(np.ascontiguousarray(column[first:last]).tobytes())
    return digest.hexdigest()


def finished(work: pathlib.Path, shard: Shard) -> dict[str, Any] | None:
    """Returns the note of a shard from an earlier run, if the shard agrees with it."""
    from array_record.python.array_record_module import ArrayRecordReader

    path = work / shard.file
    try:
        note = json.loads((work / shard.note).read_text(encoding="utf-8"))
        if note["identity"] != shard.identity:
            return None
        if path.stat().st_size != note["file_bytes"]:
            return None
        reader = ArrayRecordReader(str(path))
        try:
            return note if reader.num_records() == note["examples"] else None
        finally:
            reader.close()
    except (OSError, ValueError, KeyError, RuntimeError):
        return None


def write_shard(
    listing: Listing, shard: Shard, work: pathlib.Path, features, pool: Executor
) -> Iterator[tuple[int, list[str]]]:
    """Writes a shard and then its note, yielding after each image.

    Args:
      listing: the images.
      shard: the shard to write.
      work: the folder to write into.
      features: the set's features, of tensorflow-datasets.
      pool: reads and decodes the images.

    Yields:
      The number of images done, and the last one's problem if it could not be read and
      was left out.

    Raises:
      OSError, RuntimeError: the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    files = listing.files[shard.split]
    paths = (os.path.join(listing.path, files.paths.text(row)) for row in shard.rows)
    examples, num_bytes, left_out = 0, 0, []
    with atomic_write(work / shard.file) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            checked = _ahead(pool, _checked, paths)
            for row, (data, problem) in zip(shard.rows, checked, strict=True):
                if problem:
                    left_out.append(problem)
                else:
                    record = _record(features, data, files, row)
                    writer.write(record)
                    examples, num_bytes = examples + 1, num_bytes + len(record)
                yield row - shard.rows.start + 1, [problem] if problem else []
        finally:
            writer.close()
    note = {
        "identity": shard.identity,
        "examples": examples,
        "record_bytes": num_bytes,
        "file_bytes": (work / shard.file).stat().st_size,
        "left_out": left_out,
    }
    with atomic_write(work / shard.note) as temporary:
        temporary.write_text(json.dumps(note), encoding="utf-8")


def _record(features, data: bytes, files: Files, row: int) -> bytes:
    label = files[row][1]
    several = isinstance(label, tuple)
    example: dict[str, Any] = {"image": io.BytesIO(data)}
    example["labels" if several else "label"] = list(label) if several else label
    if WEIGHT_KEY in features:
        example[WEIGHT_KEY] = files.weights[row]
    return features.serialize_example(features.encode_example(example))


def _ahead(
    pool: Executor, function: Callable[[_T], _R], items: Iterable[_T]
) -> Iterator[_R]:
    """Maps like `pool.map`, with a bounded number of results waiting to be taken."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= _WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _checked(path: str) -> tuple[bytes, str]:
    """Returns a file's bytes and ""; or no bytes and why they are not an image."""
    try:
        data = read_file(path)
        # What the model takes, and which value is white, is only known in training.
        with contextlib.suppress(UnsuitableImage):
            decode(data, name=path)
        return data, ""
    except DecodeError as error:
        return b"", str(error)
