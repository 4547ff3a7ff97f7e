"""Reading of IDX files, the format of MNIST and of the sets that follow it.

A folder holds two files for each split, with or without ".gz" at the end:

    train-images-idx3-ubyte   train-labels-idx1-ubyte
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte

They are read as the arrays `train_images`, `train_labels`, `test_images`, … A file is
four bytes (0, 0, the dtype, the number of dimensions), each dimension as a big-endian
int32, and the values, the last dimension varying fastest, also big-endian
(yann.lecun.com/exdb/mnist).
"""

import contextlib
import functools
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from vit_jax.archives.npz import Header
from vit_jax.archives.unreadable import Unreadable
from vit_jax.data.sources import split_names
from vit_jax.errors import UserError
from vit_jax.host_memory import physical_bytes

_FILE = re.compile(
    r"(?P<split>.+?)[-_.](?P<what>images|labels)[-_.]idx\d(?P<gz>[-_.]ubyte(\.gz)?)",
    re.IGNORECASE,
)
_TEST = re.compile(r"(.*[-_.])?t10k", re.IGNORECASE)
_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_CLASS_NAMES = "class_names"
# The files hold no names; these are known by the CRC-32 of their labels.
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_KNOWN_LABELS = {0x2ED6E46A: _FASHION, 0x242BC73F: _FASHION}


def find(folder: str) -> dict[str, str]:
    """Finds the IDX files of a folder: name of the array → path.

    Of a file and its compressed copy, the former is taken.

    Raises:
      UserError: two files hold the same part of different sets.
    """
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        if not (match := _FILE.fullmatch(name)):
            continue
        split = match["split"]
        split = "test" if _TEST.fullmatch(split) else split_names.canonical(split)
        array, path = f"{split}_{match['what'].lower()}", os.path.join(folder, name)
        other = found.setdefault(array, path)
        # Sorted, a file comes before its compressed copy.
        if split is None or (other != path and f"{other}.gz" != path):
            raise UserError(
                f"{folder} holds several sets of IDX files: found "
                f"{os.path.basename(other)} and {name}. Expected one set, as "
                "train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with "
                "t10k or test: put the others into folders of their own"
            )
    return found


def is_named_so(path: str) -> bool:
    """Returns whether a file has a name as IDX files have it."""
    return _FILE.fullmatch(os.path.basename(path)) is not None


def headers(folder: str) -> dict[str, Header]:
    """Reads dtypes and shapes of all arrays.

    Raises:
      UserError: a file is not in this format, or needs more memory than there is.
    """
    found = {}
    for name, path in find(folder).items():
        with _opened(path) as file:
            found[name] = header = _header(file)
            if header.nbytes > physical_bytes():
                raise Unreadable(
                    f"it needs {header.nbytes / 1e9:.1f} GB of memory, but this "
                    f"machine has {physical_bytes() / 1e9:.1f} GB"
                )
    if known := _known_names(folder):
        names = np.array(known)
        found[_CLASS_NAMES] = Header(names.shape, names.dtype)
    return found


def read(folder: str, name: str) -> np.ndarray:
    """Reads one array, in native byte order.

    Raises:
      UserError: its file is damaged, or shorter or longer than its header says.
    """
    if name == _CLASS_NAMES:
        return np.array(_known_names(folder))
    with _opened(find(folder)[name]) as file:
        header = _header(file)
        values = file.read(header.nbytes)
        if len(values) < header.nbytes or file.read(1):
            more = "more" if len(values) == header.nbytes else f"only {len(values):,}"
            raise Unreadable(
                f"its header says {header}, {header.nbytes:,} bytes, but it has {more}"
            )
    array = np.frombuffer(bytearray(values), header.dtype).reshape(header.shape)
    return array.astype(header.dtype.newbyteorder("="), copy=False)


def checksums(folder: str) -> dict[str, int]:
    """Returns each array's name and the CRC-32 of its values.

    Raises:
      UserError: a file is damaged.
    """
    return {name: _checksum(path) for name, path in find(folder).items()}


def _known_names(folder: str) -> tuple[str, ...]:
    labels = [path for name, path in find(folder).items() if name.endswith("labels")]
    return next(
        (names for path in labels if (names := _KNOWN_LABELS.get(_checksum(path)))), ()
    )


def _checksum(path: str) -> int:
    stat = os.stat(path)
    return _checksum_of(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache
def _checksum_of(path: str, *version: int) -> int:
    del version  # a part of the key of the cache
    checksum = 0
    with _opened(path) as file:
        _header(file)
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _header(file: IO[bytes]) -> Header:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise Unreadable(f"it begins with {magic!r}, which is not the IDX format")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise Unreadable("it ends within its header")
    shape = tuple(np.frombuffer(sizes, ">i4").tolist())
    if min(shape, default=0) < 0:
        raise Unreadable(f"its header says that it has {shape} values")
    return Header(shape, np.dtype(_DTYPES[magic[2]]), start=4 + len(sizes))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    with _explained(path):
        opened: Any = gzip.open if path.lower().endswith(".gz") else open
        with opened(path, "rb") as file:
            yield file


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns errors of damaged files into UserErrors."""
    try:
        yield
    except (Unreadable, OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read: {reason}. Copy it again from where it was "
            "published."
        ) from error
