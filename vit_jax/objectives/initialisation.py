"""Drawing of initial parameters as published code does, where it differs from ours."""

import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Key

from vit_jax.objectives.protocol import Params
from vit_jax.trees import path_name


def redrawn(
    params: Params, key: Key[Array, ""], draw: Callable[[str, Array, Array], Array]
) -> Params:
    """Draws parameters anew.

    Args:
      params: the parameters.
      key: random key.
      draw: "/"-joined path, value and a key of its own → new value.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    return jax.tree.map_with_path(
        lambda path, x, key: draw(path_name(path), x, key),
        params,
        keys,
    )


def of_pytorch(x: Array, kernel: Array, key: Array) -> Array:
    """Draws a kernel, or the bias beside it, as PyTorch's layers do by default.

    Values are uniform within ±1/√n, of n inputs of the kernel.
    """
    limit = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
    return jax.random.uniform(key, x.shape, x.dtype, -limit, limit)
