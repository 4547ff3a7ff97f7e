"""Products of attention matrices over the layers: rollout and relevance.

All functions are over arrays. Matrices are [n, n] over the tokens, row i for what token
i reads, and the layers are folded one at a time, so that arrays of one layer are in
memory besides the arguments. Where a model has prompts, rows sum to less than one.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import layers_from

# Ways to make one matrix of those of the heads.
FUSIONS: dict[str, Callable[..., Array]] = {
    "mean": jnp.mean,
    "max": jnp.max,
    "min": jnp.min,
}


def fuse_heads(
    weights: Float[Array | np.ndarray, "*b h r c"], fusion: str = "mean"
) -> Float[Array, "*b r c"]:
    """Fuses the matrices of the heads into one: their mean, maximum or minimum.

    Args:
      weights: matrices of h heads, for instance [b, layers, heads, n, n].
      fusion: a row of `FUSIONS`.

    Raises:
      UserError: the fusion is unknown.
    """
    if fusion not in FUSIONS:
        raise UserError(f"fusion={fusion!r}: choose from {', '.join(FUSIONS)}")
    return FUSIONS[fusion](jnp.asarray(weights), axis=-3)


def rollout(
    weights: Float[Array | np.ndarray, "b l h n n"],
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    start: int = 0,
    residual: float = 0.5,
    prefix: int | None = None,
) -> Float[Array, "b n n"]:
    """Follows attention through all layers (Abnar & Zuidema, arXiv:2005.00928).

    R = Ā_L ⋯ Ā_s, where Ā = (1 − residual) fuse(A) + residual I with each row divided
    by its sum: rows of R sum to one. With prompts, rows are thereby normalised over the
    other tokens. Class-agnostic: nothing depends on a class.

    Args:
      weights: softmax rows before any dropout, first layer first.
      fusion: how heads are fused; a row of `FUSIONS`.
      discard: share of the weights between patches, the smallest ones of each image and
        layer, that is set to zero; see `discarded`.
      start: index of the first layer of the product; −1 for the last layer alone.
      residual: share of the identity, for the residual connection.
      prefix: number of tokens before the patches, `architecture.num_prefix_tokens`;
        only `discard` needs it.

    Raises:
      UserError: an argument is not one of the choices or not in its range.
    """
    layers = layers_from(start, weights.shape[1])
    return product(
        averaged(fuse_heads(weights[:, i], fusion), discard, residual, prefix)
        for i in layers
    )


def gradient_rollout(
    weights: Float[Array | np.ndarray, "b l h n n"],
    gradients: Float[Array | np.ndarray, "b l h n n"],
    *,
    discard: float = 0.0,
    start: int = 0,
    residual: float = 0.5,
    prefix: int | None = None,
) -> Float[Array, "b n n"]:
    """Follows attention weighted by its gradient through all layers.

    This is `rollout` of (mean over heads of A ⊙ ∂y/∂A)⁺ (jacobgil/vit-explain), each
    layer with its own gradient. Class-specific if y is. The gradients are not
    normalised, so the map depends on the scale of y: the smaller they are, the more
    the identity outweighs them.

    Args:
      weights: as in `rollout`.
      gradients: ∂y/∂A, in the order of the weights.
      discard: as in `rollout`.
      start: as in `rollout`.
      residual: as in `rollout`.
      prefix: as in `rollout`.

    Raises:
      UserError: an argument is not one of the choices or not in its range.
    """
    layers = layers_from(start, weights.shape[1])
    return product(
        averaged(
            positive_of_mean(weights[:, i], gradients[:, i]), discard, residual, prefix
        )
        for i in layers
    )


def relevance(
    weights: Float[Array | np.ndarray, "b l h n n"],
    gradients: Float[Array | np.ndarray, "b l h n n"],
    start: int = 0,
) -> Float[Array, "b n n"]:
    """Accumulates the relevance of tokens for tokens (Chefer et al., arXiv:2103.15679).

    R ← R + Ā R from R = I, layer by layer, where Ā is the mean over heads of
    (A ⊙ ∂y/∂A)⁺ (eq. 5, 6): R = (I + Ā_L) ⋯ (I + Ā_s). Rows are not normalised.
    Class-specific if y is.

    Args:
      weights: softmax rows, first layer first.
      gradients: ∂y/∂A, in the same order.
      start: index of the first layer; −1 for the last alone, as the authors do for
        CLIP.

    Raises:
      UserError: there is no such layer.
    """
    layers = layers_from(start, weights.shape[1])
    return accumulated(mean_of_positive(weights[:, i], gradients[:, i]) for i in layers)


def product(matrices: Iterable[Float[Array, "b n n"]]) -> Float[Array, "b n n"]:
    """Multiplies matrices that come in the order of the layers: R = Ā_L ⋯ Ā_1."""
    found = None
    for matrix in matrices:
        found = matrix if found is None else _times(matrix, found)
    assert found is not None  # a model has a layer
    return found


def accumulated(matrices: Iterable[Float[Array, "b n n"]]) -> Float[Array, "b n n"]:
    """Accumulates matrices in the order of the layers: R = (I + Ā_L) ⋯ (I + Ā_1)."""
    return product(_plus_identity(matrix) for matrix in matrices)


@jax.jit
def mean_of_positive(
    weights: Float[Array | np.ndarray, "*b h r c"],
    gradients: Float[Array | np.ndarray, "*b h r c"],
) -> Float[Array, "*b r c"]:
    """Computes the mean over heads of (A ⊙ ∂y/∂A)⁺, as in `relevance`."""
    return jnp.maximum(jnp.multiply(weights, gradients), 0).mean(axis=-3)


@jax.jit
def positive_of_mean(
    weights: Float[Array | np.ndarray, "*b h r c"],
    gradients: Float[Array | np.ndarray, "*b h r c"],
) -> Float[Array, "*b r c"]:
    """Computes (mean over heads of A ⊙ ∂y/∂A)⁺, as in `gradient_rollout`."""
    return jnp.maximum(jnp.multiply(weights, gradients).mean(axis=-3), 0)


def averaged(
    fused: Float[Array | np.ndarray, "b n n"],
    discard: float = 0.0,
    residual: float = 0.5,
    prefix: int | None = None,
) -> Float[Array, "b n n"]:
    """Averages a fused matrix with the identity, and divides rows by their sums.

    A row that would be zero stays zero.

    Args:
      fused: the matrix of a layer.
      discard: as in `rollout`.
      residual: as in `rollout`.
      prefix: as in `rollout`.

    Raises:
      UserError: a share is not between 0 and 1, or `discard` lacks a prefix.
    """
    for name, share in (("discard", discard), ("residual", residual)):
        if not 0 <= share <= 1:
            raise UserError(f"{name}={share}: expected a share from 0 to 1")
    fused = jnp.asarray(fused)
    if discard:
        if prefix is None:
            raise UserError(
                "discard needs prefix=…, the number of tokens before the patches: "
                "architecture.num_prefix_tokens"
            )
        fused = discarded(fused, discard, prefix)
    return _averaged(fused, residual)


@partial(jax.jit, static_argnums=(1, 2))
def discarded(
    fused: Float[Array | np.ndarray, "b n n"], share: float, prefix: int
) -> Float[Array, "b n n"]:
    """Sets the smallest weights between patches to zero, in each image for itself.

    Of the m² weights by which m patches read patches, the ⌊share · m²⌋ smallest become
    zero; equal ones at the limit are all kept. What tokens before the patches read, and
    how they are read, is always kept: without the class token's own weights, no row
    would be left to show.

    Args:
      fused: the matrix of a layer, with its heads fused.
      share: share of these weights; 1 for all.
      prefix: number of tokens before the patches.
    """
    fused = jnp.asarray(fused)
    patches = fused[:, prefix:, prefix:]
    b, m, _ = patches.shape
    count = int(share * m * m)
    if count == m * m:
        return fused.at[:, prefix:, prefix:].set(0)
    limit = jnp.sort(patches.reshape(b, m * m), axis=1)[:, count]
    kept = jnp.where(patches < limit[:, None, None], 0, patches)
    return fused.at[:, prefix:, prefix:].set(kept)


@jax.jit
def _averaged(fused, residual):
    mixed = (1 - residual) * fused + residual * jnp.eye(fused.shape[-1])[None]
    # Row sums need their axis: without it, columns would be divided.
    total = mixed.sum(axis=-1, keepdims=True)
    return mixed / jnp.where(total > 0, total, 1)


@jax.jit
def _plus_identity(matrix):
    return matrix + jnp.eye(matrix.shape[-1])[None]


_times = jax.jit(jnp.matmul)
