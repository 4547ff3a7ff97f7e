"""Shared by the readers of the single formats: a tensor, and a file of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.archives.unreadable import Unreadable
from vit_jax.words import quoted

# Of NumPy arrays before version 2; no weights have more than six.
MOST_DIMENSIONS = 32


class Spec(NamedTuple):
    """What a file declares of one tensor.

    Attributes:
      shape: its shape.
      dtype: as it is read: native byte order, bfloat16 as ml_dtypes.bfloat16.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


class Stored(NamedTuple):
    """One tensor of a file, and how to read it."""

    spec: Spec
    read: Callable[[], np.ndarray]


class Contents(NamedTuple):
    """What a reader found in a file."""

    kind: str
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def make_spec(name: str, shape: Sequence[int], dtype: np.dtype) -> Spec:
    """Refuses shapes that no array can have, even if it is empty."""
    size = math.prod(n for n in shape if n) * dtype.itemsize
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or size >= 1 << 62:
        raise Unreadable(f"the shape of its tensor {quoted(name)} is damaged")
    return Spec(tuple(shape), dtype)
