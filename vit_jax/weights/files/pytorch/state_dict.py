"""A reader of PyTorch state dicts that needs neither PyTorch nor unpickling.

Checkpoints that `pickle.Unpickler` would load are read by the interpreter in
vit_jax/weights/files/pytorch/pickles.py, which says why a whitelist is not enough.
"""

import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, BinaryIO, Literal, NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import Member, aligned_bytes, check_expansion
from vit_jax.weights.files.contents import MOST_DIMENSIONS, Contents, Stored, make_spec
from vit_jax.weights.files.entries import find_entries
from vit_jax.weights.files.pytorch.pickles import (
    LONGEST_PICKLE,
    Global,
    Inert,
    Storage,
    Tensor,
    read_pickle,
)
from vit_jax.weights.files.saved_classes import find_class_names
from vit_jax.words import quoted, shortened

# Tied weights share one storage between several tensors.
_MOST_SHARING = 4
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_PICKLE = "data.pkl"
_REMEDY = "Save dense, unquantized tensors of a common type"
_UNTYPED = "UntypedStorage"
_OPTIMIZER = {"state", "param_groups"}

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_FLOATS = ("Double", "Float", "Half", "BFloat16")
_STORAGES = {f"{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
# Names of dtypes for untyped storages.
_NAMED = {np.dtype(dtype).name: np.dtype(dtype) for dtype in _DTYPES.values()} | {
    name: np.dtype(name) for name in ("uint16", "uint32", "uint64")
}


class _Held(NamedTuple):
    """The bytes of a storage in the file."""

    size: int
    read: Callable[[int, int], np.ndarray]  # (start, stop) in bytes


def find_pickles(names: Iterable[str]) -> list[str]:
    """Finds the names in an archive that mark it as a PyTorch checkpoint."""
    return [name for name in names if name.rpartition("/")[2] == _PICKLE]


def open_torch_zip(members: Mapping[str, Member]) -> Contents:
    """Opens the state dict of a checkpoint in the format since PyTorch 1.6.

    Raises:
      Unreadable: it does not hold a state dict, or something in it is damaged.
    """
    pickles = find_pickles(members)
    if len(pickles) != 1:
        raise Unreadable(f"it holds {len(pickles)} pickles instead of one")
    folder = pickles[0].removesuffix(_PICKLE)
    if members[pickles[0]].size > LONGEST_PICKLE:
        raise Unreadable("its pickle is longer than any state dict's")
    saved = read_pickle(io.BytesIO(_read_member(members[pickles[0]]).data)).value
    order = members.get(f"{folder}byteorder")
    swapped = order is not None and bytes(_read_member(order)) != sys.byteorder.encode()

    def held(storage: Storage) -> _Held:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None:
            raise Unreadable(
                f"the data of its storage {quoted(storage.key)} is missing"
            )
        if member.size != _size(storage):
            raise Unreadable(
                f"its storage {quoted(storage.key)} holds {member.size:,} bytes, but "
                f"declares {_size(storage):,}"
            )
        return _Held(member.size, partial(_read_member, member))

    return _contents(saved, held, swapped)


def open_torch(file: BinaryIO) -> Contents:
    """Opens the state dict of a checkpoint in the format before PyTorch 1.6.

    The file consists of five pickles (magic number, version, the machine's sizes and
    byte order, the object, the keys of its storages), followed by the element count and
    the elements of each storage.

    Raises:
      Unreadable: it does not hold a state dict, or something in it is damaged.
    """
    file.seek(0)
    if read_pickle(file).value != _LEGACY_MAGIC:
        raise Unreadable(
            "it was not written by torch.save",
            "Pass a state dict that torch.save wrote, or save it as .safetensors",
        )
    version, machine, saved, keys = (read_pickle(file) for _ in range(4))
    sizes = machine.value
    little = sizes.get("little_endian") if isinstance(sizes, dict) else None
    if version.value != _LEGACY_VERSION or not isinstance(little, bool):
        raise Unreadable("its version or byte order is damaged")
    swapped = little is not (sys.byteorder == "little")
    places = _places(file, keys.value, saved.storages, "little" if little else "big")

    def held(storage: Storage) -> _Held:
        if storage.key not in places:
            raise Unreadable(
                f"the data of its storage {quoted(storage.key)} is missing"
            )
        start, size = places[storage.key]
        return _Held(size, lambda first, last: _read(file, start + first, last - first))

    return _contents(saved.value, held, swapped)


def _read_member(member: Member, start: int = 0, stop: int | None = None) -> np.ndarray:
    # PyTorch writes 0 if it is configured not to compute checksums.
    return member.read(start, stop, check=member.checksum != 0)


def _places(
    file: BinaryIO,
    keys: Any,
    storages: Mapping[str, Storage],
    order: Literal["little", "big"],
) -> dict[str, tuple[int, int]]:
    """Locates the storages of the old format: key → (start, size) in bytes."""
    end = os.fstat(file.fileno()).st_size
    places = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise Unreadable("it holds a storage that no tensor refers to")
        count = int.from_bytes(file.read(8), order)
        size = _size(storage)
        start = file.tell()
        if count != storage.count or size > end - start:
            raise Unreadable(
                f"its storage {quoted(key)} does not hold the {storage.count:,} "
                "numbers that it should; the file was cut off or damaged"
            )
        places[key] = start, size
        file.seek(size, os.SEEK_CUR)
    return places


def _read(file: BinaryIO, start: int, count: int) -> np.ndarray:
    out = aligned_bytes(count)
    file.seek(start)
    if file.readinto(out.data) != count:  # type: ignore[attr-defined]
        raise Unreadable("the file ends too early")
    return out


def _contents(saved: Any, held: Callable[[Storage], _Held], swapped: bool) -> Contents:
    """Finds the state dicts in a saved object and opens the most likely one."""
    states = find_entries(saved, _is_tensor)
    if not states:
        raise Unreadable(
            f"it holds {_what(saved)} instead of a state dict",
            "Load it where it was made, and save model.state_dict() alone",
        )
    entries = {
        keys: partial(_open_state, state, held, swapped)
        for keys, state in states.items()
    }
    keys, opened = next(iter(entries.items()))
    names = find_class_names(saved)
    return Contents("torch", opened(), {"wrapper": keys}, entries, names)


def _what(saved: Any) -> str:
    """Describes a saved object that holds no state dict."""
    if isinstance(saved, Inert):
        if saved.maker.module.startswith("__torch__"):
            return "the code of a TorchScript model"
        return f"an object of {quoted(str(saved.maker))}"
    if isinstance(saved, dict):
        if saved.keys() >= _OPTIMIZER or any(
            isinstance(value, dict) and value.keys() >= _OPTIMIZER
            for value in saved.values()
        ):
            return "the state of an optimizer and no weights"
        return f"a dict without tensors ({shortened(list(saved), quoted) or '{}'})"
    return f"a value of type {type(saved).__name__}"


def _open_state(
    state: Mapping[str, Any], held: Callable[[Storage], _Held], swapped: bool
) -> dict[str, Stored]:
    """Opens the tensors of a state dict."""
    unknown = [name for name, value in state.items() if _is_odd_tensor(value)]
    if unknown:
        raise Unreadable(
            "it holds tensors of kinds that vit_jax cannot read: "
            f"{shortened(unknown, quoted)}",
            _REMEDY,
        )
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    tensors = {
        name: _open_tensor(name, value, held, swapped) for name, value in found.items()
    }
    storages = {tensor.storage for tensor in found.values()}
    check_expansion(
        sum(math.prod(s.spec.shape) * s.spec.dtype.itemsize for s in tensors.values()),
        sum(held(storage).size for storage in storages),
        _MOST_SHARING,
    )
    return tensors


def _is_tensor(value: Any) -> bool:
    """Returns whether it is a tensor of any kind, including those that are not read.

    A dict that has only unreadable tensors is then reported and not overlooked.
    """
    return isinstance(value, Tensor) or _is_odd_tensor(value)


def _is_odd_tensor(value: Any) -> bool:
    return (
        isinstance(value, Inert)
        and value.maker.module.startswith("torch")
        and value.maker.name.startswith("_rebuild")
    )


def _open_tensor(
    name: str, tensor: Tensor, held: Callable[[Storage], _Held], swapped: bool
) -> Stored:
    storage, offset, shape, strides, _ = tensor
    dtype = _dtype(tensor)
    if dtype is None:
        raise Unreadable(
            f"its tensor {quoted(name)} has a type that NumPy lacks",
            f"Convert it to one of {', '.join(_FLOATS)} where it was made",
        )
    sizes = (offset, *shape, *strides) if _are_tuples(shape, strides) else (None,)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise Unreadable(f"the shape of its tensor {quoted(name)} is damaged")
    found = held(storage)
    count = math.prod(shape)
    # One past the last element that the tensor uses.
    stop = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    have = found.size // dtype.itemsize
    if count and (stop > have or count > have):
        raise Unreadable(
            f"its tensor {quoted(name)} declares {count:,} numbers, but its storage "
            f"holds {have:,}"
        )

    def read() -> np.ndarray:
        if not count:
            return np.empty(shape, dtype)
        data = found.read(offset * dtype.itemsize, stop * dtype.itemsize)
        if swapped:
            data = data.view(f"u{dtype.itemsize}").byteswap(inplace=True)
        array = data.view(dtype)
        if stop - offset == count and strides == _row_by_row(shape):
            return array.reshape(shape)
        # The stride of an axis with one element is arbitrary.
        steps = [
            s * dtype.itemsize if n > 1 else 0
            for n, s in zip(shape, strides, strict=True)
        ]
        view = as_strided(array, shape, steps)
        # A view of a larger array would keep all of that array in memory.
        return view if stop - offset == count else view.copy()

    return Stored(make_spec(name, shape, dtype), read)


def _are_tuples(shape: Any, strides: Any) -> bool:
    both = type(shape) is tuple and type(strides) is tuple
    return both and len(shape) == len(strides) <= MOST_DIMENSIONS


def _row_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides of a tensor in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _dtype(tensor: Tensor) -> np.dtype | None:
    if not isinstance(tensor.storage, Storage):
        return None
    kind = tensor.storage.kind.name
    if kind == _UNTYPED and isinstance(tensor.dtype, Global):
        return _NAMED.get(tensor.dtype.name)
    return _STORAGES.get(kind)


def _size(storage: Storage) -> int:
    """Returns the number of bytes that a storage declares."""
    kind = storage.kind.name
    if kind == _UNTYPED:
        return storage.count
    if kind not in _STORAGES:
        raise Unreadable(f"it holds a {quoted(kind)}, which is not supported", _REMEDY)
    return storage.count * _STORAGES[kind].itemsize
