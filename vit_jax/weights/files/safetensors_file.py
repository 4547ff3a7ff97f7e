"""A lazy reader of safetensors files, based on the safetensors library."""

import functools
import pathlib
import struct
from contextlib import ExitStack

# Also imported for its effect: it registers bfloat16 with NumPy, where the library
# looks it up.
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vit_jax.archives.unreadable import Unreadable
from vit_jax.weights.files.contents import Contents, Stored, make_spec
from vit_jax.weights.files.recognise import LONGEST_SAFETENSORS_HEADER
from vit_jax.words import one_line, quoted

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_FLOATS = [name for name in _DTYPES if "F" in name]


def open_safetensors(path: pathlib.Path, stack: ExitStack) -> Contents:
    """Reads the header; the file stays open until the stack is closed.

    Raises:
      Unreadable: the header is damaged or does not match the rest of the file exactly,
        or NumPy has no such type as a tensor's.
    """
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
    if length > min(LONGEST_SAFETENSORS_HEADER, path.stat().st_size - 8):
        raise Unreadable(f"it declares a header of {length:,} bytes")
    try:
        handle = stack.enter_context(safe_open(path, framework="np"))
        # Sorted by offset, which is the order in which they were saved.
        names = handle.offset_keys()
        tensors = {name: _open_tensor(handle, name) for name in names}
        return Contents("safetensors", tensors, handle.metadata() or {})
    except SafetensorError as error:
        raise Unreadable(one_line(str(error))) from error


def _open_tensor(handle, name: str) -> Stored:
    piece = handle.get_slice(name)
    dtype = piece.get_dtype()
    if dtype not in _DTYPES:
        raise Unreadable(
            f"its tensor {quoted(name)} is of type {dtype}",
            f"Convert it to one of {', '.join(_FLOATS)} where it was made",
        )
    spec = make_spec(name, piece.get_shape(), np.dtype(_DTYPES[dtype]))
    return Stored(spec, functools.partial(_read, handle, name))


def _read(handle, name: str) -> np.ndarray:
    try:
        return handle.get_tensor(name)
    except SafetensorError as error:
        raise Unreadable(one_line(str(error))) from error
