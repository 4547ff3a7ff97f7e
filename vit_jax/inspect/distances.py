"""Mean attention distance and attention entropy of every layer and head."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import attending, checked_images, in_chunks
from vit_jax.inspect.blockwise import Blockwise
from vit_jax.model import Model


class AttentionStatistics(NamedTuple):
    """How far and how widely heads look, averaged over images.

    Attributes:
      distance: mean attention distance in pixels of the model's input.
      share: the same as a share of the image's side; the square root of height times
        width where these differ.
      entropy: mean entropy of the rows in nats.
    """

    distance: Float[np.ndarray, "depth heads"]
    share: Float[np.ndarray, "depth heads"]
    entropy: Float[np.ndarray, "depth heads"]


def attention_statistics(
    model: Model, images: Float[Array | np.ndarray, "b h w c"]
) -> AttentionStatistics:
    """Computes mean attention distance and entropy of all heads of a model.

    Class-agnostic. Only one layer's weights are in memory at a time. Prompts are left
    out: rows are renormalised over the image's tokens.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`. The paper
        averages over 128 of them (arXiv:2010.11929, D.7).

    Raises:
      UserError: the model has no attention, there are no images, or they have another
        shape or type.
    """
    a = attending(model)
    images = checked_images(model, images)
    if not len(images):
        raise UserError("there are no images to average over: pass at least one")
    run = Blockwise(model)

    def of_images(images: Array, _) -> Array:
        layers = []
        for _, found in run.forward(run.embed(images), ("attention",)):
            weights = np.asarray(found["attention"])
            of_layer = (
                attention_distance(weights, a.grid, a.patch_size),
                attention_entropy(weights),
            )
            layers.append(np.stack(of_layer, axis=1))
        return jnp.asarray(np.stack(layers, axis=1))  # [b, depth, 2, heads]

    found = np.asarray(in_chunks(of_images, model, images), np.float64)
    distance, entropy = np.moveaxis(found.mean(axis=0), 1, 0)
    side = np.sqrt(a.image_size[0] * a.image_size[1])
    return AttentionStatistics(distance, distance / side, entropy)


def attention_distance(
    weights: Float[Array | np.ndarray, "*heads n n"],
    grid: tuple[int, int],
    patch_size: tuple[int, int],
) -> Float[np.ndarray, "*heads"]:
    """Computes the mean distance in pixels over which patches read patches.

    The mean over patches i of Σ_j A_ij |position_i − position_j| / Σ_j A_ij
    (arXiv:2010.11929, figure 7 and D.7); j runs over the patches, i itself included at
    distance 0. The tokens before the patches are ignored, and rows renormalised without
    them, which the paper leaves open. A patch that reads no patch is not counted.

    Args:
      weights: attention; the patches are its last rows and columns.
      grid: patches along (height, width).
      patch_size: (height, width) in pixels.

    Raises:
      UserError: there are fewer tokens than patches.
    """
    gh, gw = grid
    prefix = weights.shape[-1] - gh * gw
    if prefix < 0:
        raise UserError(
            f"attention over {weights.shape[-1]} tokens cannot be that of a grid of "
            f"{gh}x{gw} patches: pass the grid of the model that made it"
        )
    among = np.asarray(weights)[..., prefix:, prefix:]
    rows = np.einsum("...ij,ij->...i", among, patch_distances(grid, patch_size))
    mass = among.sum(axis=-1, dtype=np.float64)
    reads = mass > 0
    means = np.divide(rows, mass, out=np.zeros_like(rows), where=reads)
    return means.sum(axis=-1) / np.maximum(reads.sum(axis=-1), 1)


def attention_entropy(
    weights: Float[Array | np.ndarray, "*heads n n"],
) -> Float[np.ndarray, "*heads"]:
    """Computes the mean entropy of the rows, −Σ_j A_ij ln A_ij, in nats.

    It is 0 if every token reads one token, and ln n if all read all alike. Rows are
    those of all tokens, normalised to a sum of one.
    """
    shares = np.asarray(weights, np.float64)
    shares = shares / shares.sum(axis=-1, keepdims=True)
    positive = shares > 0
    logs = np.log(shares, out=np.zeros_like(shares), where=positive)
    return -(shares * logs).sum(axis=-1).mean(axis=-1)


def patch_distances(
    grid: tuple[int, int], patch_size: tuple[int, int]
) -> Float[np.ndarray, "m m"]:
    """Computes the distances in pixels between the centres of all patches."""
    steps = np.indices(grid).reshape(2, -1).T * np.asarray(patch_size, np.float64)
    return np.linalg.norm(steps[:, None] - steps[None], axis=-1)
