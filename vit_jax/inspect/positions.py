"""Cosine similarity of position embeddings, the grid of grids."""

import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models import Architecture
from vit_jax.models.positions import resize, sincos2d


def position_similarity(
    positions: Model | Float[Array | np.ndarray, "gh gw d"],
) -> Float[np.ndarray, "gh gw gh gw"]:
    """Computes the cosine of every patch's position embedding to all others.

    Tile [i, j] compares patch (i, j) with the grid (arXiv:2010.11929, figure 7). The
    positions of class token and registers are left out. It says nothing about images.

    Args:
      positions: a model, or an array. An embedding of zeros has similarity 0.

    Raises:
      UserError: the model has no position embeddings.
    """
    if isinstance(positions, Model):
        positions = patch_positions(positions)
    p = np.asarray(positions, np.float64)
    gh, gw, d = p.shape
    p = p.reshape(gh * gw, d)
    norms = np.linalg.norm(p, axis=-1, keepdims=True)
    unit = np.divide(p, norms, out=np.zeros_like(p), where=norms > 0)
    return (unit @ unit.T).reshape(gh, gw, gh, gw)


def patch_positions(model: Model) -> Float[np.ndarray, "gh gw d"]:
    """Returns the position embeddings that a model adds to its patches.

    They are learned or fixed (sin-cos), at the size of the model's grid.

    Raises:
      UserError: the model has no position embeddings.
    """
    a = model.architecture
    if not isinstance(a, Architecture):
        raise UserError(
            "this model is an MLP-Mixer, which has no position embeddings: the weights "
            "of its layers over tokens depend on their places"
        )
    return np.asarray(_POSITIONS[a.posemb](model.params, a)[0])


def _learned(params, a: Architecture) -> Float[Array | np.ndarray, "1 gh gw d"]:
    positions = params["pos_embed"]
    # Without a method, they are stored at the size at which they are used.
    return (
        resize(positions, a.grid, a.flexible_resize) if a.flexible_grid else positions
    )


# The architecture's `posemb` → the positions that the model adds.
_POSITIONS = {
    "learned": _learned,
    "sincos2d": lambda _, a: sincos2d(a.grid, a.width, a.sincos_denominator),
}
