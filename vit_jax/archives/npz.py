"""Reads and writes NumPy archives (.npz); nothing is ever pickled or unpickled.

What an array may hold is up to the caller, who gets the headers first. An array is
allocated only if the archive has as many bytes as its header declares.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import Member, read_members
from vit_jax.words import one_line, quoted

_SUFFIX = ".npy"
_LONGEST_HEADER = 10_000  # as numpy.load's own
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """What an archive declares of one array.

    Attributes:
      shape: may have negative or impossible dimensions, if it is damaged.
      dtype: in the file's byte order.
      fortran_order: its first dimension is the one that varies fastest.
      start: where its data begins.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool = False
    start: int = 0

    def __str__(self):
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def array_members(members: Mapping[str, Member]) -> dict[str, Member]:
    """Picks the arrays of an archive, by name; what else it holds is left alone."""
    return {
        name.removesuffix(_SUFFIX): member
        for name, member in members.items()
        if name.endswith(_SUFFIX)
    }


def read_header(member: Member) -> Header:
    """Reads the header of an array, and not more than 10 kB.

    Raises:
      ValueError: it is damaged; says in one line how.
      Unreadable: the archive is.
    """
    begin = io.BytesIO(member.head(_LONGEST_HEADER + npy.MAGIC_LEN + 4))
    try:
        version = npy.read_magic(begin)
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
        with warnings.catch_warnings():
            # Python warns while it parses a damaged header.
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = _READ_HEADER[version](
                begin, max_header_size=_LONGEST_HEADER
            )
    # A dozen kinds: the header is Python text, which NumPy hands to Python's parser.
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(one_line(reason)) from error
    return Header(shape, dtype, fortran_order, begin.tell())


def read_array(member: Member, header: Header) -> np.ndarray:
    """Reads an array into memory of its own, in this machine's byte order.

    Raises:
      Unreadable: it holds Python objects, or its data is not what the header declares.
    """
    shape, dtype, fortran_order, start = header
    held = member.size - start
    if dtype.hasobject or not dtype.itemsize or header.nbytes != held:
        raise Unreadable(f"{quoted(member.name)} is {header} and holds {held:,} bytes")
    data = member.read(start)
    try:
        array = data.view(dtype).reshape(shape[::-1] if fortran_order else shape)
    except ValueError as error:  # such as two negative dimensions
        raise Unreadable(f"the shape of {quoted(member.name)} is damaged") from error
    if not dtype.isnative:
        native = dtype.newbyteorder("=")
        swap = dtype.names is None  # else only some of its fields may need it
        array = (
            array.byteswap(inplace=True).view(native) if swap else array.astype(native)
        )
    return array.T if fortran_order else array


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive.

    Raises:
      Unreadable, ValueError: it is damaged, or holds something else than plain arrays.
    """
    members = array_members(read_members(file))
    return {
        name: read_array(member, read_header(member))
        for name, member in members.items()
    }


def write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `numpy.savez` does, never pickled.

    Older versions of NumPy take `allow_pickle` for one more array, and leave the
    archive open when the disk is full.

    Raises:
      OSError: they cannot be written.
      ValueError: an array of objects.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
