"""Taps on a model: arrays that are read inside it, and what is added to them there.

A layer passes each array that has a name through `Taps`. To differentiate with respect
to such an array, which no caller holds, add zeros to it and differentiate with respect
to these: one backward pass then has the gradients of all layers, in their order.
"""

from collections.abc import Collection, Mapping

import jax.numpy as jnp
from jaxtyping import Array

# The arrays of a block of a Vision Transformer, in the order in which they arise. A
# Mixer's has only "tokens".
OF_BLOCKS = ("norm1", "queries", "keys", "values", "attention", "tokens")


class Taps:
    """Reads arrays by name while a model runs, and adds others to them.

    Attributes:
      found: the arrays that were wanted, by name.
    """

    def __init__(
        self, wanted: Collection[str] = (), added: Mapping[str, Array] | None = None
    ):
        """Makes taps for one call.

        Args:
          wanted: names of the arrays to read.
          added: what is added to arrays, by name. It may be shorter than the array
            along an axis, as if zeros followed: tokens that only some models have, such
            as prompts, come last.
        """
        self.wanted, self.added = frozenset(wanted), dict(added or {})
        self.found: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.wanted or name in self.added

    def __call__(self, name: str, value: Array) -> Array:
        """Returns the value with what is added; notes it if it is wanted."""
        if name in self.added:
            value = value + padded(self.added[name], value)
        if name in self.wanted:
            self.found[name] = value
        return value


def padded(added: Array, value: Array) -> Array:
    """Pads what is added to the shape of an array, with zeros at the end of each axis.

    Raises:
      ValueError: it is larger than the array, or has another number of axes.
    """
    missing = [n - m for n, m in zip(value.shape, added.shape, strict=False)]
    if added.ndim != value.ndim or min(missing) < 0:
        raise ValueError(
            f"what is added has shape {added.shape}, the array has {value.shape}"
        )
    return jnp.pad(added, [(0, n) for n in missing]).astype(value.dtype)
