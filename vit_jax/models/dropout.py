"""Dropout of elements of activations, and of an example's whole branch.

JAX's default generator takes a hundred operations per number: with it, a prototype's
B/16 step with dropout of 0.1 took 80 % longer (threefry). XLA's generator (rbg) took
0.9 GiB per block more. Dropout need not be unpredictable, so here the mask is a hash of
the element's row, its channel and two numbers drawn for the layer. That takes six
operations per element, which XLA fuses into the surrounding computation, and the
backward pass recomputes the mask instead of reading it from memory.

By the TPU compiler's estimate (docs/performance.md), dropout of 0.1 turns a B/16 step
of 128 images on v5e from 90.9 to 92.6 ms and from 5.44 to 5.45 GiB; on v4 from 85.9 to
95.5 ms and from 5.46 to 7.05 GiB. Neither was run on a TPU.
"""

from collections.abc import Callable
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
    """Returns rates that rise linearly from 0 in the first block to `last`."""
    return np.linspace(0, last, depth, dtype=np.float32)


# Form of stochastic depth → (rate, number of blocks) → the rate in each block. It rises
# in the paper (arXiv:1603.09382), and is the same in all blocks of DeiT III.
DEPTH_FORMS: dict[str, Callable[[float, int], Float[np.ndarray, " depth"]]] = {
    "linear": stochastic_depth_rates,
    "constant": lambda rate, depth: np.full(depth, rate, np.float32),
}


def drop(x: Array, rate: Any, key: Any, whole_examples: bool = False) -> Array:
    """Zeroes elements or examples with probability `rate`; preserves the mean.

    Args:
      x: activations [b, …, channels].
      rate: a number; for whole examples, also an array.
      key: random key; None = nothing is dropped.
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
    """Computes which elements to keep, from their indices; sharding changes nothing."""
    *leading, channels = shape
    row = jnp.zeros(leading, jnp.uint32)
    for axis, size in enumerate(leading):
        place = lax.broadcasted_iota(jnp.uint32, leading, axis)
        row = row * np.uint32(size) + place
    row = _hash(row + seed[0])
    channel = _hash(lax.iota(jnp.uint32, channels) + seed[1])
    channel = channel.reshape(*[1] * len(leading), channels)
    # Half of `_hash` is enough: only the highest bits need to be good to be compared.
    bits = (row[..., None] ^ channel) * _FIRST
    bits = (bits ^ (bits >> 15)) * _SECOND
    return bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15)) * _SECOND
    return x ^ (x >> 16)
