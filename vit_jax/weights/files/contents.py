"""What the readers of the single formats share: what a tensor is, and how they fail."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Of NumPy arrays before version 2; no weights have more than six.
MOST_DIMENSIONS = 32
# JAX on a CPU uses an array where it lies if it begins at a multiple of this.
_ALIGNMENT = 64
_MOST_LISTED = 10
_LONGEST_NAME = 100
_LONGEST_REASON = 200
_ALWAYS_ALLOWED = 32 << 20  # bytes


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


class Unreadable(Exception):
    """A file cannot be read: `reason` and `remedy` are parts of the user's message."""

    def __init__(
        self, reason: str, remedy: str = "Fetch it again, or use another copy"
    ):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def make_spec(name: str, shape: Sequence[int], dtype: np.dtype) -> Spec:
    """Refuses shapes that no array can have, even if it is empty."""
    size = math.prod(n for n in shape if n) * dtype.itemsize
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or size >= 1 << 62:
        raise Unreadable(f"the shape of its tensor {quoted(name)} is damaged")
    return Spec(tuple(shape), dtype)


def aligned_bytes(count: int) -> np.ndarray:
    """Uninitialised bytes that JAX need not copy."""
    block = np.empty(count + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + count]


def check_expansion(declared: int, held: int, most: int) -> None:
    """Refuses what is more than `most` times what holds it, and than 32 MiB."""
    if declared > max(_ALWAYS_ALLOWED, most * held):
        raise Unreadable(
            f"{held:,} bytes claim to be {declared:,}, more than weights can be packed",
            "Do not trust it; use another copy",
        )


def quoted(name: str) -> str:
    """A name out of a file, fit for one line of a message."""
    return repr(name[:_LONGEST_NAME]) + ("…" if len(name) > _LONGEST_NAME else "")


def plain(name: str) -> str:
    """Likewise, without quotes where nothing in it needs them."""
    harmless = name.isprintable() and not set(name) & set(" ,'\"")
    return name if harmless and 0 < len(name) <= _LONGEST_NAME else quoted(name)


def one_line(text: str) -> str:
    """Another library's words, fit for one line of a message."""
    words = " ".join(text.split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def shortened(names: Sequence[str], show: Callable[[str], str] = quoted) -> str:
    """Names for a message: at most ten, and the count of the rest."""
    more = len(names) - _MOST_LISTED
    listed = ", ".join(show(name) for name in names[:_MOST_LISTED])
    return listed + (f", … and {more} more" if more > 0 else "")
