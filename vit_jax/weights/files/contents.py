"""Types shared by the readers: a tensor's spec, a stored tensor, a file's contents."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.archives.unreadable import Unreadable
from vit_jax.words import quoted

# The limit of NumPy before version 2; no weights have more than six.
MOST_DIMENSIONS = 32


class Spec(NamedTuple):
    """The shape and dtype that a file declares for one tensor.

    Attributes:
      shape: its shape.
      dtype: the dtype after reading: native byte order, bfloat16 from ml_dtypes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


class Stored(NamedTuple):
    """One tensor of a file, with a function that reads it."""

    spec: Spec
    read: Callable[[], np.ndarray]


class Contents(NamedTuple):
    """The opened content of a file.

    Attributes:
      kind: "npz", "safetensors" or "torch".
      tensors: those of the file, or of its most likely entry.
      metadata: strings about the file.
      entries: the state dicts of a PyTorch file, the most likely model first: keys
        joined by "/" → function that opens the tensors. Empty for any other file.
      class_names: all lists of class names in a PyTorch file.
    """

    kind: str
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    entries: Mapping[str, Callable[[], Mapping[str, Stored]]] = {}
    class_names: Sequence[tuple[str, ...]] = ()


def make_spec(name: str, shape: Sequence[int], dtype: np.dtype) -> Spec:
    """Makes a spec; raises Unreadable for a shape that not even an empty array has."""
    size = math.prod(n for n in shape if n) * dtype.itemsize
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or size >= 1 << 62:
        raise Unreadable(f"the shape of its tensor {quoted(name)} is damaged")
    return Spec(tuple(shape), dtype)
