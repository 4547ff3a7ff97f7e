"""A reader of tensors in NumPy archives (.npz)."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vit_jax.archives.npz import Header, array_members, read_array, read_header
from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import Member
from vit_jax.weights.files.contents import Contents, Stored, make_spec
from vit_jax.words import quoted

_REMEDY = "Save plain numbers with numpy.savez"
# Booleans, integers, floating point, complex and text.
_PLAIN_KINDS = "biufcSU"
# NumPy does not know bfloat16 and saves such arrays as two anonymous bytes.
_BFLOAT16 = np.dtype("V2")


def open_npz(members: Mapping[str, Member]) -> Contents:
    """Reads the headers of all arrays of an archive and ignores its other members.

    Raises:
      Unreadable: there are no arrays, or one is not plain numbers or text, or its size
        differs from the declared one.
    """
    tensors = {
        name: _open_array(member) for name, member in array_members(members).items()
    }
    if not tensors:
        raise Unreadable("it holds no arrays", "Pass an archive of numpy.savez")
    return Contents("npz", tensors, {})


def _open_array(member: Member) -> Stored:
    array = f"its array {quoted(member.name)}"
    header = _header(member)
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise Unreadable(
            f"{array} holds pickled Python objects, which may run code", _REMEDY
        )
    plain = dtype.kind in _PLAIN_KINDS and dtype.itemsize
    if not plain and dtype != _BFLOAT16:
        raise Unreadable(f"{array} holds elements of type {dtype}", _REMEDY)
    held = member.size - header.start
    if header.nbytes != held:
        raise Unreadable(
            f"{array} holds {held:,} bytes, but its header declares {header.nbytes:,} "
            f"({dtype}, {shape})"
        )
    native = dtype.newbyteorder("=") if plain else np.dtype(ml_dtypes.bfloat16)
    return Stored(
        make_spec(member.name, shape, native),
        lambda: read_array(member, header).view(native),
    )


def _header(member: Member) -> Header:
    try:
        return read_header(member)
    except ValueError as error:
        raise Unreadable(
            f"the header of its array {quoted(member.name)} is damaged ({error})"
        ) from error
