"""Weights of attention and the gradients of a target with respect to them."""

from collections.abc import Iterator

import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from vit_jax.inspect.arguments import attending, checked_images
from vit_jax.inspect.blockwise import Blockwise, OfBlock, OfHead
from vit_jax.inspect.targets import Target, resolved
from vit_jax.model import Model


def weights_and_gradients(
    model: Model,
    images: Float[Array | np.ndarray, "b h w c"],
    target: Target = None,
) -> tuple[
    Float[np.ndarray, "b depth heads n n"], Float[np.ndarray, "b depth heads n n"]
]:
    """Computes all weights of attention A, and ∂y/∂A in the same order.

    One backward pass through zeros that are added to the weights of each block. Prompts
    are not among the n tokens, as in `Model.attention`. All of it is kept: 384 MB for
    an image of 384 pixels and B/16. The maps need no more than one block of it.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`.
      target: y, a number for each image: the logit of a class (its index, or one for
        each image); None, the class with the largest logit, or, without classes, the
        `length` of the features; or a function of `Outputs` that returns [b].

    Returns:
      Weights and gradients, float32, on the host.

    Raises:
      UserError: the model has no attention, or an argument is invalid.
    """
    a = attending(model)
    images = checked_images(model, images)
    _, blocks = differentiated(
        model, images, resolved(model, len(images), target), "attention"
    )
    n = a.num_tokens - a.prompts
    shape = (len(images), a.depth, a.num_heads, n, n)
    weights, gradients = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for block in blocks:
        weights[:, block.layer] = block.value
        gradients[:, block.layer] = block.gradient
    return weights, gradients


def differentiated(
    model: Model,
    images: Float[Array, "b h w c"],
    target: Partial,
    name: str,
    start: int = 0,
) -> tuple[OfHead, Iterator[OfBlock]]:
    """Differentiates a target with respect to an intermediate of blocks.

    Args:
      model: the model.
      images: checked images.
      target: from `targets.resolved`.
      name: the intermediate, one of `taps.OF_BLOCKS`.
      start: index of the first block.

    Returns:
      The gradients at the head, and an iterator over the blocks from the last one
      backwards, which computes each when it is asked for.
    """
    run = Blockwise(model)
    tokens = [run.embed(images)]
    tokens += [x for x, _ in run.forward(tokens[0])]
    of_head = run.head(tokens[-1], target)
    return of_head, run.backward(tokens[:-1], of_head.tokens, name, start)
