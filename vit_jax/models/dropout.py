"""What training drops: elements of activations, or an example's whole branch.

JAX's generator takes a hundred operations for a number, and dropout of a tenth makes a
B/16's step almost twice as long. What is dropped need not be unpredictable: here a bit
is a hash of the element's row, its channel and two numbers drawn for the layer. It
takes six operations an element, which XLA fuses into what is computed anyway, and the
backward pass computes it again instead of finding it in memory.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

# Multipliers of a 32-bit hash whose every output bit depends on every input bit
# (C. Wellons, "Prospecting for Hash Functions", 2018).
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def stochastic_depth_rates(last: float, depth: int) -> Float[np.ndarray, " depth"]:
    """Rates from 0 in the first block to `last` in the last."""
    return np.linspace(0, last, depth, dtype=np.float32)


def drop(x: Array, rate: Any, key: Any, whole_examples: bool = False) -> Array:
    """Zeroes elements or examples with probability `rate`; the mean stays as it was.

    Args:
      x: activations [b, …, channels].
      rate: a number; of whole examples also an array.
      key: None = nothing is dropped.
      whole_examples: decide once for each x[i].
    """
    if key is None or (not isinstance(rate, jax.Array) and not rate):
        return x
    if whole_examples:
        kept = jnp.float32(1) - rate
        shape = (len(x), *[1] * (x.ndim - 1))
        return _scaled(x, jax.random.bernoulli(key, kept, shape), kept)
    return _drop_elements(x, jax.random.bits(key, (2,), jnp.uint32), float(rate))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop_elements(x: Array, seed: UInt32[Array, "2"], rate: float) -> Array:
    return _scaled(x, _kept(seed, rate, x.shape), jnp.float32(1 - rate))


def _forward(x, seed, rate):
    return _drop_elements(x, seed, rate), seed


def _backward(rate, seed, gradient):
    nothing = np.zeros(seed.shape, jax.dtypes.float0)
    return _drop_elements(gradient, seed, rate), nothing


_drop_elements.defvjp(_forward, _backward)


def _scaled(x: Array, mask: Array, kept: Array) -> Array:
    return jnp.where(mask, (x / kept).astype(x.dtype), jnp.zeros_like(x))


def _kept(
    seed: UInt32[Array, "2"], rate: float, shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """Which elements stay: a function of their place, however they are spread."""
    *leading, channels = shape
    row = jnp.zeros(leading, jnp.uint32)
    for axis, size in enumerate(leading):
        place = lax.broadcasted_iota(jnp.uint32, leading, axis)
        row = row * np.uint32(size) + place
    row = _hash(row + seed[0])
    channel = _hash(lax.iota(jnp.uint32, channels) + seed[1])
    channel = channel.reshape(*[1] * len(leading), channels)
    # Their combination is hashed as far as its highest bits, which are compared.
    bits = (row[..., None] ^ channel) * _FIRST
    bits = (bits ^ (bits >> 15)) * _SECOND
    return bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15)) * _SECOND
    return x ^ (x >> 16)
