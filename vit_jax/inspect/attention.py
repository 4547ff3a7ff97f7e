"""Attention of one layer as maps on the grid of patches."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import attending, checked_images, in_chunks
from vit_jax.inspect.blockwise import Blockwise
from vit_jax.inspect.rollout import FUSIONS, fuse_heads
from vit_jax.model import Model
from vit_jax.models import Architecture
from vit_jax.models.heads import MAP_ATTENTION

MAP_HEAD = "map_head"  # the layer of attention with which a MAP head pools


def attention_maps(
    model: Model,
    images: Float[Array | np.ndarray, "b h w c"],
    layer: int | str = -1,
    head: int | str | None = None,
    *,
    token: int | None = None,
) -> Float[Array, "b heads gh gw"] | Float[Array, "b gh gw"]:
    """Computes the weights by which the pooled token reads the patches in one layer.

    A_l[h, token, patches] (arXiv:2104.14294, figure 1); the other columns, such as the
    class token's, are left out, so a map sums to less than one. Class-agnostic: the
    map cannot depend on a class. Only this layer's weights are kept in memory.

    `read_map` says what is read where no single token is pooled.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`.
      layer: index of a block; 0 is the first, −1 the last. Or "map_head", the
        attention by which a MAP head reads the patches.
      head: None for all heads, the index of one, or their "mean", "max" or "min".
      token: index of one token to read instead, in the order class token, distillation
        token, registers, patches row by row.

    Raises:
      UserError: the model has no attention, no such block, head or token; or the images
        have another shape or type.
    """
    a = attending(model)
    if not _is_head(head, a.num_heads):
        raise UserError(
            f"head={head!r}: expected an index from 0 to {a.num_heads - 1}, "
            f"{', '.join(FUSIONS)}, or None for all"
        )
    of_head = layer == MAP_HEAD
    if of_head and (a.pooling != "map" or token is not None):
        raise UserError(
            f'layer="{MAP_HEAD}" is the attention of a head with pooling map, and '
            f"reads no token; this model has pooling {a.pooling}, token is {token}"
        )

    def maps(images, _):
        pooled = map_attention(model, images) if a.pooling == "map" else None
        if of_head:
            assert pooled is not None
            found = pooled.reshape(len(pooled), a.num_heads, *a.grid)
        else:
            weights = model.attention(images, layers=cast(Any, (layer,)))[:, 0]
            shares = None if pooled is None else pooled.mean(axis=1)
            found = read_map(weights, a, shares, token=token)
        if head is None:
            return found
        return fuse_heads(found, head) if isinstance(head, str) else found[:, head]

    return in_chunks(maps, model, checked_images(model, images))


def map_attention(
    model: Model, images: Float[Array, "b h w c"]
) -> Float[Array, "b heads m"]:
    """Computes the weights by which a MAP head reads the m patches; rows sum to one.

    Args:
      model: a Vision Transformer with pooling "map".
      images: checked images.
    """
    run = Blockwise(model)
    tokens = run.embed(images)
    for x, _ in run.forward(tokens):
        tokens = x
    return run.pooling(tokens)[MAP_ATTENTION]


def read_map(
    matrix: Float[Array | np.ndarray, "b *heads n n"],
    architecture: Architecture,
    map_attention: Float[Array | np.ndarray, "b m"] | None = None,
    *,
    token: int | None = None,
) -> Float[Array, "b *heads gh gw"]:
    """Reads what the pooled vector draws from the patches, as a map on their grid.

    The map is Σ_i s_i R[i, patches], where s_i is the share of token i in what is
    pooled: with pooling "cls", 1 for the class token, or ½ for each of two tokens with
    a head; with "gap", 1/m for each of m patches; with "cls_gap", half of each of
    these; with "map", `map_attention` for the patches.

    Args:
      matrix: R, by which token i reads token j: attention, rollout or relevance.
      architecture: says which tokens are patches, and how they are pooled.
      map_attention: the shares of the patches with pooling "map".
      token: index of one token to read instead of the pooled ones.

    Raises:
      UserError: there is no such token, or shares are missing.
    """
    a, n = architecture, matrix.shape[-1]
    if token is not None:
        if isinstance(token, bool) or not 0 <= token < n:
            raise UserError(
                f"token={token!r}: expected an index from 0 to {n - 1}; the first "
                f"{a.num_prefix_tokens} are not patches"
            )
        shares = _one(n, token)
    elif a.pooling == "map" and map_attention is None:
        raise UserError("with pooling map, pass map_attention, the shares of patches")
    else:
        shares = _SHARES[a.pooling](a, map_attention)
    shares = jnp.broadcast_to(shares, (len(matrix), n))
    row = jnp.einsum("bi,b...ij->b...j", shares, matrix)
    return row[..., a.num_prefix_tokens :].reshape(*row.shape[:-1], *a.grid)


def _one(n: int, token: int) -> Array:
    return jax.nn.one_hot(jnp.array([token]), n)


def _special(a: Architecture) -> Array:
    """Returns the shares of the tokens that heads read, [1, n]."""
    n = a.num_prefix_tokens + a.grid[0] * a.grid[1]
    return (jnp.arange(n) < a.num_pooled)[None] / a.num_pooled


def _patches(a: Architecture) -> Array:
    """Returns equal shares of the patches, [1, n]."""
    m = a.grid[0] * a.grid[1]
    return jnp.pad(jnp.full((1, m), 1 / m), ((0, 0), (a.num_prefix_tokens, 0)))


# Pooling → the share of each token in what is pooled, [b or 1, n].
_SHARES: dict[str, Callable[[Architecture, Any], Array]] = {
    "cls": lambda a, _: _special(a),
    "gap": lambda a, _: _patches(a),
    "cls_gap": lambda a, _: (_special(a) + _patches(a)) / 2,
    "map": lambda a, shares: jnp.pad(shares, ((0, 0), (a.num_prefix_tokens, 0))),
}


def _is_head(head: Any, heads: int) -> bool:
    if head is None or isinstance(head, str):
        return head is None or head in FUSIONS
    whole = isinstance(head, int | np.integer) and not isinstance(head, bool)
    return bool(whole and 0 <= head < heads)
