"""Reads .npz files of unknown origin: sizes first, and nothing is unpickled."""

import zipfile
from typing import NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.host_memory import physical_bytes

# What deflate can at most make of a byte.
_MOST_INFLATED = 1032


class Header(NamedTuple):
    """Shape and dtype of an array, read without the array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self):
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    @property
    def columns(self) -> bool:
        """Whether it has two dimensions, the second of more than one."""
        return len(self.shape) == 2 and self.shape[1] > 1

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def headers(path: str) -> dict[str, Header]:
    """Types and shapes of all arrays; no array is allocated.

    Raises:
      UserError: the file is no archive of arrays; or, of all arrays at once, Python
        objects, sizes that the file does not have, or more than this machine's memory.
    """
    found, problems = {}, []
    with _Opened(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                continue  # not an array, and not ours to judge
            try:
                with archive.open(member) as file:
                    header = _header(file)
                    begin = file.tell()
            except (ValueError, EOFError) as error:
                problems.append(f"{name}: {error}")
                continue
            found[name] = header
            if header.dtype.hasobject:
                problems.append(
                    f"{name} holds Python objects, which are never unpickled: save it "
                    "with a plain dtype"
                )
            elif header.nbytes + begin != member.file_size:
                problems.append(f"{name} is {header}, but its file has another size")
            elif member.file_size > _MOST_INFLATED * max(member.compress_size, 1):
                problems.append(f"{name} cannot be as large as it says, {header}")
            elif header.nbytes > physical_bytes():
                problems.append(
                    f"{name} needs {header.nbytes / 1e9:.1f} GB of memory, this "
                    f"machine has {physical_bytes() / 1e9:.1f} GB: write the images "
                    "to files, with a table"
                )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} cannot be used:{listed}")
    return found


def read(path: str, name: str) -> np.ndarray:
    """One array, whose header has been checked.

    Raises:
      UserError: its data are damaged.
    """
    with _Opened(path) as archive, archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


class _Opened:
    """The archive; whatever goes wrong inside is a UserError."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self._archive = zipfile.ZipFile(self._path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self._unreadable(error) from error
        return self._archive

    def __exit__(self, kind, error, _) -> None:
        self._archive.close()
        # zipfile and zlib raise a dozen kinds for damaged files.
        if isinstance(error, Exception) and not isinstance(
            error, UserError | MemoryError
        ):
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or error
        return UserError(
            f"{self._path} cannot be read: {reason}. Copy or write it again."
        )


def _header(file) -> Header:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"is of version {version}, expected a plain array")
    shape, _, dtype = readers[version](file)
    return Header(shape, dtype)
