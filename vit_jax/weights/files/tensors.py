"""Safe access to any file of tensors.

Nothing in a file is executed, and no memory is allocated for data that it lacks.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO

import numpy as np

from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import read_members
from vit_jax.errors import UserError
from vit_jax.weights.files.contents import Contents, Stored
from vit_jax.weights.files.contents import Spec as Spec
from vit_jax.weights.files.npz import open_npz
from vit_jax.weights.files.pytorch.state_dict import (
    find_pickles,
    open_torch,
    open_torch_zip,
)
from vit_jax.weights.files.recognise import (
    is_json,
    is_pickle,
    is_safetensors,
    is_zip,
    recognise,
)
from vit_jax.weights.files.safetensors_file import open_safetensors
from vit_jax.words import quoted, shortened

_LARGEST_INDEX = 2 << 20


class Tensors:
    """The tensors of an open file or of one model's shards, each read on request.

    A context manager. Not thread-safe.

    Attributes:
      path: the path that was opened.
      kind: "npz", "safetensors" or "torch".
      specs: name → shape and dtype, in the file's order.
      metadata: for safetensors, the strings in the header. For torch, "wrapper": the
        "/"-joined keys under which the state dict was found ("" if it is the whole
        file). Empty for npz.
      entries: the "/"-joined keys of all state dicts of a PyTorch file, the most likely
        model first, which is the one that was opened; [""] for any other file.
      class_names: all lists of class names in a PyTorch file, in the order of outputs.
    """

    def __init__(self, path: pathlib.Path, contents: Contents, stack: ExitStack):
        self.path = path
        self.kind = contents.kind
        self.specs = {name: stored.spec for name, stored in contents.tensors.items()}
        self.metadata = contents.metadata
        self.entries = list(contents.entries) or [""]
        self.class_names = list(contents.class_names)
        self._contents = contents
        self._entry = contents.metadata.get("wrapper", "") if contents.entries else ""
        self._stored: Mapping[str, Stored] = contents.tensors
        self._stack = stack

    def of(self, entry: str) -> "Tensors":
        """Opens another entry of the same file; closing either closes both.

        Raises:
          UserError: its tensors cannot be read.
        """
        if entry == self._entry:
            return self
        try:
            found = self._contents.entries[entry]()
        except Unreadable as error:
            raise UserError(_message(self.path, error)) from error
        contents = self._contents._replace(tensors=found, metadata={"wrapper": entry})
        return Tensors(self.path, contents, self._stack)

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """Returns the same tensors by other names: new name → name."""
        found = {new: self._stored[old] for new, old in names.items()}
        contents = self._contents._replace(tensors=found, metadata=self.metadata)
        return Tensors(self.path, contents, self._stack)

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor into new memory, with the shape and dtype of its spec.

        Raises:
          KeyError: there is no tensor of that name, or the file was closed.
          UserError: the file is damaged there.
        """
        try:
            return self._stored[name].read()
        except (Unreadable, OSError) as error:
            raise UserError(_message(self.path, error)) from error

    def close(self) -> None:
        """Closes the files; arrays that were read stay valid."""
        self._stored = {}
        self._stack.close()

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_tensors(path: str | pathlib.Path) -> Tensors:
    """Opens a file of tensors; recognises the format by its content, not its name.

    Args:
      path: a NumPy archive, a safetensors file, a PyTorch checkpoint (zip or the format
        before 1.6), or the JSON index of a sharded checkpoint whose shards lie beside
        it.

    Raises:
      UserError: it is missing, damaged, or something else (the message says what).
    """
    path = pathlib.Path(path).expanduser()
    with ExitStack() as stack:
        try:
            contents = _open(path, stack)
        except (Unreadable, OSError) as error:
            raise UserError(_message(path, error)) from error
        return Tensors(path, contents, stack.pop_all())


def _open(path: pathlib.Path, stack: ExitStack) -> Contents:
    if path.is_file():
        file = stack.enter_context(path.open("rb"))
        start = file.read(64)
        for matches, read in _READERS:
            if matches(start):
                return read(path, file, stack)
    raise Unreadable("", f"Pass {_READABLE}")


def _open_zip(file: BinaryIO) -> Contents:
    members = read_members(file)
    if find_pickles(members):
        return open_torch_zip(members)
    return open_npz(members)


def _open_index(path: pathlib.Path, stack: ExitStack) -> Contents:
    """Opens the shards beside an index and selects the tensors that it lists."""
    weight_map = _read_index(path)
    names = dict.fromkeys(weight_map.values())
    paths = {name: path.parent / name for name in names}
    missing = [name for name, shard in paths.items() if not shard.is_file()]
    if missing:
        raise Unreadable(
            f"{len(missing)} of the {len(names)} files that it lists are not beside "
            f"it: {shortened(missing, quoted)}",
            "Fetch them into the same directory",
        )
    shards = {
        name: stack.enter_context(open_tensors(shard)) for name, shard in paths.items()
    }
    absent = [
        f"{tensor} (in {shard})"
        for tensor, shard in weight_map.items()
        if tensor not in shards[shard].specs
    ]
    if absent:
        raise Unreadable(
            f"{len(absent)} of the {len(weight_map)} tensors that it lists are not in "
            f"their files: {shortened(absent, quoted)}",
            "Fetch the index and the files again, all of the same model",
        )
    tensors = {
        tensor: Stored(shards[shard].specs[tensor], partial(shards[shard].read, tensor))
        for tensor, shard in weight_map.items()
    }
    first, *others = shards.values()
    metadata = dict(first.metadata)
    for shard in others:
        metadata |= shard.metadata
    return Contents(first.kind, tensors, metadata)


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Reads {tensor: name of the file that holds it}."""
    size = path.stat().st_size
    if size > _LARGEST_INDEX:
        raise Unreadable(
            f"it has {size:,} bytes, too many for the index of a sharded checkpoint",
            f"Pass {_READABLE}",
        )
    try:
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
        shards = list(weight_map.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(
            "it has no weight_map, so it is not the index of a sharded checkpoint",
            f"Pass {_READABLE}",
        ) from error
    odd = [
        str(shard)
        for shard in shards
        if not isinstance(shard, str)
        or shard in ("", ".", "..")
        or any(mark in shard for mark in "/\\\0")
        # An index that lists an index could recurse forever.
        or shard.endswith(".json")
    ]
    if odd or not shards:
        raise Unreadable(
            f"it lists names that are not of files beside it: {shortened(odd, quoted)}"
            if odd
            else "it lists no tensors",
            "Do not trust it; use another copy",
        )
    return weight_map


def _message(path: pathlib.Path, error: Unreadable | OSError) -> str:
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or error}."
    if not path.exists():
        return f"there is nothing at {path}. Pass {_READABLE}."
    reason = f": {error.reason}" if error.reason else ""
    remedy = error.remedy or "Fetch it again, or use another copy"
    return f"{path} is {recognise(path)}{reason}. {remedy}."


_READABLE = (
    "a NumPy archive (.npz), a .safetensors file, a PyTorch checkpoint (.bin, .pth, "
    ".pt) or the .index.json of a sharded one"
)

_Reader = Callable[[pathlib.Path, BinaryIO, ExitStack], Contents]
# (test of the first bytes, reader); the first match wins.
_READERS: list[tuple[Callable[[bytes], bool], _Reader]] = [
    (is_safetensors, lambda path, file, stack: open_safetensors(path, stack)),
    (is_zip, lambda path, file, stack: _open_zip(file)),
    (is_pickle, lambda path, file, stack: open_torch(file)),
    (is_json, lambda path, file, stack: _open_index(path, stack)),
]
