"""Random access to images whose bytes are in Parquet files.

Parquet has none: to read one image is to read a row group, which may be a whole file.
So the first few images of a file are read that way. If more are wanted, a small file's
images are held in memory, and a large one's are unpacked once into a file of the cache
folder, where each is found by its offset. That file serves all processes and later
runs. Without space for it, every image costs the reading of a row group.
"""

import errno
import hashlib
import itertools
import logging
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import filelock
import numpy as np

from vit_jax.cache import cache_dir
from vit_jax.data.decode import DecodeError
from vit_jax.data.hashing import stable_hash
from vit_jax.data.preprocessing import read_file
from vit_jax.data.sources.array_files.reading import version
from vit_jax.data.sources.tables.parquet import leaf, opened
from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.words import byte_size

_PROBED = 2  # images that are read from a file before it is unpacked
_SMALL = 32 * 2**20  # bytes of a file's images that are held in memory …
_HELD = 256 * 2**20  # … as long as all of them together are not more
_ROWS_AT_ONCE = 16  # bounds the memory while images are read one after the other
_NAME = re.compile(r"(.*)\[([0-9]+)\]", re.DOTALL)

logger = logging.getLogger(__name__)


class ChangedFile(UserError):
    """An error: a file has changed since its rows were read."""


class EmbeddedFile(NamedTuple):
    """A Parquet file with images.

    Attributes:
      column: the column of their bytes, as Parquet names it.
      version: the file's state when its rows were read; see
        `array_files.reading.version`.
    """

    column: str
    version: tuple[int, int]


class ImageReader:
    """A function from a listing's paths to files' bytes, also for embedded images.

    It is thread-safe, and what is sent to another process is only the names of files.
    """

    def __init__(self, root: str, files: Mapping[str, EmbeddedFile]):
        """Opens nothing yet.

        Args:
          root: the folder that paths are relative to.
          files: path of each Parquet file with images, relative to `root`.
        """
        self._root, self._files = root, dict(files)
        self._opened: dict[str, _Images] = {}
        self._held = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return ImageReader, (self._root, self._files)

    def __call__(self, path: str) -> bytes:
        """Returns the bytes of an image file, or of one in a Parquet file.

        Raises:
          DecodeError: it cannot be read.
          ChangedFile: the Parquet file has changed since its rows were read.
        """
        found = _NAME.fullmatch(path)
        if not found or found[1] not in self._files:
            return read_file(os.path.join(self._root, path))
        name = os.path.join(self._root, path)
        try:
            image = self._images(found[1])[int(found[2])]
        except ChangedFile:
            raise
        except UserError as error:
            raise DecodeError(f"{name} cannot be read: {error}") from error
        if not image:
            raise DecodeError(f"{name} cannot be read: the table has no bytes for it")
        return image

    def size_and_time(self, path: str) -> tuple[int, int] | None:
        """Returns the size and modification time of an embedded image, else None.

        The size is the average of its file.
        """
        found = _NAME.fullmatch(path)
        if not found or found[1] not in self._files:
            return None
        images = self._images(found[1])
        return images.size // max(images.count, 1), images.version[0]

    def _images(self, file: str) -> "_Images":
        with self._lock:
            if file not in self._opened:
                path, about = os.path.join(self._root, file), self._files[file]
                images = _Images(path, about)
                if images.size <= min(_SMALL, _HELD - self._held):
                    self._held += images.size
                    images.held = True
                self._opened[file] = images
            return self._opened[file]


class _Images:
    """The images of one Parquet file, by their rows.

    Attributes:
      count, size: number of images and of their bytes.
      version: see `EmbeddedFile`.
      held: whether they may be held in memory.
    """

    def __init__(self, path: str, about: EmbeddedFile):
        self._path, self._column, self.version = path, about.column, about.version
        self.held = False
        self._check_unchanged()
        with opened(path) as parquet:
            metadata = parquet.metadata
        groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        self._ends = [*itertools.accumulate(group.num_rows for group in groups)]
        self.count = metadata.num_rows
        self.size = sum(
            chunk.total_uncompressed_size
            for group in groups
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema == self._column
        )
        self._lock = threading.Lock()
        self._probed = 0
        self._all: Sequence[bytes | None] | None = None
        self._failed = False  # whether they could not be read all at once

    def __getitem__(self, row: int) -> bytes | None:
        with self._lock:
            self._probed += 1
            if self._probed > _PROBED and self._all is None and not self._failed:
                self._all = self._read_all()
        return self._all[row] if self._all is not None else self._one(row)

    def _read_all(self) -> "Sequence[bytes | None] | None":
        self._check_unchanged()
        try:
            if self.held:
                return [*self._each(range(len(self._ends)))]
            return self._unpacked()
        except UserError:  # damaged: the row groups before and after can be read
            self._failed = True
            return None
        except OSError as error:
            self._failed = True
            logger.warning(
                "the images of %s (%s) cannot be unpacked into %s: %s. Reading each of "
                "them costs the reading of many others. Set VIT_JAX_CACHE to a folder "
                "with more space, or run python -m vit_jax.prepare once.",
                self._path,
                byte_size(self.size),
                cache_dir(),
                error.strerror or error,
            )
            return None

    def _one(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._ends, row, "right"))
        first = self._ends[group - 1] if group else 0
        return next(itertools.islice(self._each([group]), row - first, None))

    def _each(self, groups: Sequence[int]) -> Iterator[bytes | None]:
        with opened(self._path) as parquet:
            for batch in parquet.iter_batches(
                _ROWS_AT_ONCE,
                row_groups=list(groups),
                columns=[self._column],
                use_threads=False,
            ):
                yield from leaf(batch, self._column).to_pylist()

    def _check_unchanged(self) -> None:
        if version(self._path) != self.version:
            raise ChangedFile(
                f"{self._path} was written again after its rows had been read. Start "
                "again once the file is complete."
            )

    def _unpacked(self) -> "_Unpacked":
        """Returns the images unpacked in the cache; unpacks them if none has before.

        Raises:
          OSError: they cannot be unpacked.
        """
        identity = hashlib.blake2b(
            repr((self._path, self._column, self.version)).encode(
                "utf-8", "surrogateescape"
            ),
            digest_size=_Unpacked.IDENTITY,
        ).digest()
        # The same name for every version of the file: a new one replaces the old one.
        name = f"{stable_hash(f'{self._path}[{self._column}]'):016x}"
        file = cache_dir() / "parquet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(file.with_name(f".{name}.lock")):
            if found := _Unpacked.open(file, identity):
                return found
            if shutil.disk_usage(file.parent).free < 1.02 * self.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            size = byte_size(self.size)
            logger.info("unpacking the images of %s (%s)", self._path, size)
            _Unpacked.write(file, self._each(range(len(self._ends))), identity)
            found = _Unpacked.open(file, identity)
        if found is None:
            raise OSError("the unpacked file cannot be read back")
        return found


class _Unpacked(Sequence[bytes | None]):
    """A file of images: their bytes, where each ends, how many, and whose they are."""

    IDENTITY = 16  # bytes

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> bytes:
        return self._data[self._ends[index] : self._ends[index + 1]].tobytes()

    @classmethod
    def open(cls, file: pathlib.Path, identity: bytes) -> "_Unpacked | None":
        """Maps a file into memory; None if there is none for these images."""
        try:
            data = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError):  # missing or empty
            return None
        if len(data) < cls.IDENTITY + 8 or data[-cls.IDENTITY :].tobytes() != identity:
            return None
        data = data[: -cls.IDENTITY]
        count = int(data[-8:].view("<i8")[0])
        data = data[:-8]
        ends = np.frombuffer(data[-8 * (count + 1) :].tobytes(), "<i8")
        return cls(data, ends)

    @staticmethod
    def write(
        file: pathlib.Path, images: Iterator[bytes | None], identity: bytes
    ) -> None:
        with atomic_write(file) as temporary, temporary.open("wb") as out:
            ends = [0]
            for image in images:
                out.write(image or b"")
                ends.append(ends[-1] + len(image or b""))
            out.write(np.array(ends, "<i8").tobytes())
            out.write(np.array([len(ends) - 1], "<i8").tobytes())
            out.write(identity)
