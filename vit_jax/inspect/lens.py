"""The logit lens: the model's own norm and head on tokens of earlier layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import checked_images
from vit_jax.model import Model


def logit_lens(
    model: Model,
    images: Float[Array | np.ndarray, "b h w c"],
    layers: Sequence[int] | None = None,
) -> Float[Array, "b layers k"]:
    """Computes the logits that the model would have if it ended after a block.

    Final norm, pooling and head are applied to the tokens after the block ("logit
    lens", nostalgebraist 2020). After the last block these are the model's logits. The
    head has never seen the tokens of other blocks, so early layers may say little.

    Args:
      model: a model with classes.
      images: images in the model's value range, from `model.prepare`.
      layers: indices of blocks; None for all.

    Raises:
      UserError: the model has no head or no such block, or the images have another
        shape or type.
    """
    chosen = range(model.architecture.depth) if layers is None else layers
    tokens = _tokens(model, images, chosen)
    b, count, n, d = tokens.shape
    logits = _logits(model.module, model.params, tokens.reshape(b * count, n, d))
    return logits.reshape(b, count, -1)


def patch_lens(
    model: Model,
    images: Float[Array | np.ndarray, "b h w c"],
    layers: Sequence[int] = (-1,),
) -> Float[Array, "b layers gh gw k"]:
    """Computes the logits that the model would have if it pooled one patch alone.

    Final norm and head are applied to each patch's token as if it were the only thing
    that is pooled: the class token, the mean of the patches, or the one patch that a
    MAP head attends to. Where a linear head follows the mean of normed patches, these
    logits average to the model's; elsewhere the head has never seen such a vector.

    Args:
      model: a model with classes.
      images: images in the model's value range, from `model.prepare`.
      layers: indices of blocks.

    Raises:
      UserError: the model has no head or no such block, or the images have another
        shape or type.
    """
    a = model.architecture
    patches = _tokens(model, images, layers)[:, :, a.num_prefix_tokens :]
    b, count, m, d = patches.shape
    # An image whose every token is this patch: whatever is pooled, the patch is.
    alone = patches.reshape(b * count * m, 1, d)
    alone = jnp.repeat(alone, a.num_prefix_tokens + 1, axis=1)
    logits = _logits(model.module, model.params, alone)
    return logits.reshape(b, count, *a.grid, -1)


def _tokens(model: Model, images: Any, layers: Sequence[int]):
    """Computes the tokens after blocks, [b, layers, n, d]."""
    if not model.architecture.num_classes:
        raise UserError(
            "this model has no head, so it has no logits: load it without "
            "num_classes=0 if its file has one, or fine-tune it"
        )
    features = model.features(checked_images(model, images), layers)
    b, count, gh, gw, d = features.patches.shape
    patches = features.patches.reshape(b, count, gh * gw, d)
    return jnp.concatenate([features.prefix, patches], axis=2)


@partial(jax.jit, static_argnums=0)
def _logits(module, params, tokens):
    """Computes the logits of tokens after any block; two heads are averaged."""
    variables = {"params": params}
    vectors = module.apply(variables, tokens, method="pool")
    logits = module.apply(variables, vectors, method="head")
    return sum(logits[1:], logits[0]) / len(logits)
