"""NumPy archives (.npz), read and written without ever pickling or unpickling.

The caller gets the headers first and decides which arrays to accept. Memory for an
array is allocated only if the archive holds as many bytes as the header declares.
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
_LONGEST_HEADER = 10_000  # bytes; the limit of numpy.load
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """The header of one array, as the archive declares it.

    Attributes:
      shape: may have negative or impossible dimensions if the header is damaged.
      dtype: in the file's byte order.
      fortran_order: whether the first dimension varies fastest.
      start: offset of the data within the member, in bytes.
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
    """Picks the arrays of an archive, by name, and ignores its other members."""
    return {
        name.removesuffix(_SUFFIX): member
        for name, member in members.items()
        if name.endswith(_SUFFIX)
    }


def read_header(member: Member) -> Header:
    """Reads the header of an array, of at most 10 kB.

    Raises:
      ValueError: the header is damaged; the message gives the reason in one line.
      Unreadable: the archive is damaged.
    """
    begin = io.BytesIO(member.head(_LONGEST_HEADER + npy.MAGIC_LEN + 4))
    try:
        version = npy.read_magic(begin)
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
        with warnings.catch_warnings():
            # Parsing a damaged header makes Python warn.
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = _READ_HEADER[version](
                begin, max_header_size=_LONGEST_HEADER
            )
    # A dozen exception types: NumPy hands the header, which is Python source, to
    # Python's parser.
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(one_line(reason)) from error
    return Header(shape, dtype, fortran_order, begin.tell())


def read_array(member: Member, header: Header) -> np.ndarray:
    """Reads an array into newly allocated memory, in native byte order.

    Raises:
      Unreadable: it holds Python objects, or its data does not match the header.
    """
    shape, dtype, fortran_order, start = header
    held = member.size - start
    if dtype.hasobject or not dtype.itemsize or header.nbytes != held:
        raise Unreadable(f"{quoted(member.name)} is {header} but holds {held:,} bytes")
    data = member.read(start)
    try:
        array = data.view(dtype).reshape(shape[::-1] if fortran_order else shape)
    except ValueError as error:  # such as two negative dimensions
        raise Unreadable(f"the shape of {quoted(member.name)} is damaged") from error
    if not dtype.isnative:
        native = dtype.newbyteorder("=")
        swap = dtype.names is None  # structured: perhaps only some fields need it
        array = (
            array.byteswap(inplace=True).view(native) if swap else array.astype(native)
        )
    return array.T if fortran_order else array


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive.

    Raises:
      Unreadable, ValueError: it is damaged, or an array holds Python objects.
    """
    members = array_members(read_members(file))
    return {
        name: read_array(member, read_header(member))
        for name, member in members.items()
    }


def write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays in the format of `numpy.savez`, without pickling.

    `numpy.savez` itself is not used: older versions of NumPy would save `allow_pickle`
    as one more array, and leave the archive open when the disk is full.

    Raises:
      OSError: they cannot be written.
      ValueError: an array holds Python objects.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
