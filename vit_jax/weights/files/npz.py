"""Reads NumPy archives (.npz) without unpickling, each array into its own memory."""

import io
import math
import warnings
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from vit_jax.weights.files.contents import (
    Contents,
    Stored,
    Unreadable,
    make_spec,
    one_line,
    quoted,
)
from vit_jax.weights.files.zips import Member

_SUFFIX = ".npy"
_LONGEST_HEADER = 10_000  # as numpy.load's own
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_REMEDY = "Save plain numbers with numpy.savez"
# Booleans, integers, floating point and texts; numbers up to eight bytes.
_PLAIN_KINDS = "biufcSU"


def open_npz(members: Mapping[str, Member]) -> Contents:
    """Reads the headers of all arrays of an archive; what else it holds is left alone.

    Raises:
      Unreadable: there are none; one is no plain array, or declares another size than
        it has.
    """
    tensors = {
        name.removesuffix(_SUFFIX): _open_array(member)
        for name, member in members.items()
        if name.endswith(_SUFFIX)
    }
    if not tensors:
        raise Unreadable("it holds no arrays", "Pass an archive of numpy.savez")
    return Contents("npz", tensors, {})


def _open_array(member: Member) -> Stored:
    shape, fortran_order, dtype, start = _read_header(member)
    array = f"its array {quoted(member.name)}"
    if dtype.hasobject:
        raise Unreadable(f"{array} holds Python objects, pickled code", _REMEDY)
    # bfloat16 has no name in NumPy: such arrays are saved as two anonymous bytes.
    plain = dtype.kind in _PLAIN_KINDS and dtype.itemsize
    if not plain and dtype != np.dtype("V2"):
        raise Unreadable(f"{array} holds elements of type {dtype}", _REMEDY)
    declared = math.prod(shape) * dtype.itemsize
    if declared != member.size - start:
        raise Unreadable(
            f"{array} declares {declared:,} bytes ({dtype}, {shape}) and holds "
            f"{member.size - start:,}"
        )

    def read() -> np.ndarray:
        array = member.read(start).view(dtype)
        if not dtype.isnative:
            array = array.byteswap(inplace=True).view(native)
        elif dtype.kind == "V":
            array = array.view(native)
        if fortran_order:
            return array.reshape(shape[::-1]).T
        return array.reshape(shape)

    native = dtype.newbyteorder("=")
    if dtype.kind == "V":
        native = np.dtype(ml_dtypes.bfloat16)
    return Stored(make_spec(member.name, shape, native), read)


def _read_header(member: Member) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, fortran_order, dtype, where the data begins)."""
    start = io.BytesIO(member.head(_LONGEST_HEADER + npy.MAGIC_LEN + 4))
    try:
        version = npy.read_magic(start)
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format")
        with warnings.catch_warnings():
            # Of a damaged header Python warns while it parses it.
            warnings.simplefilter("ignore")
            header = _READ_HEADER[version](start, max_header_size=_LONGEST_HEADER)
    # A dozen kinds: the header is Python text, which NumPy hands to Python's parser.
    except Exception as error:
        reason = one_line((str(error) or type(error).__name__).partition("\n")[0])
        raise Unreadable(
            f"the header of its array {quoted(member.name)} is damaged ({reason})"
        ) from error
    return *header, start.tell()
