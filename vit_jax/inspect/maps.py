"""Maps of a model's images by rollout and relevance, and the table of all maps.

No map is an explanation: each shows what its formula says. `MAPS` says of each whether
it can depend on a class.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from vit_jax.inspect.arguments import (
    attending,
    checked_images,
    in_chunks,
    layer_index,
)
from vit_jax.inspect.attention import MAP_HEAD, attention_maps, read_map
from vit_jax.inspect.blockwise import Blockwise
from vit_jax.inspect.cam import eigen_cam, grad_cam, hires_cam
from vit_jax.inspect.gradients import differentiated
from vit_jax.inspect.rollout import (
    accumulated,
    averaged,
    fuse_heads,
    mean_of_positive,
    positive_of_mean,
    product,
)
from vit_jax.inspect.targets import Target, resolved
from vit_jax.model import Model
from vit_jax.models.heads import MAP_ATTENTION

Images = Float[Array | np.ndarray, "b h w c"]


class Map(NamedTuple):
    """A kind of map, a row of `MAPS`.

    Attributes:
      compute: function of a model, images and a target that returns [b, gh, gw].
      class_specific: whether the target can change the map.
      title: its name.
      caption: a sentence on what it shows.
    """

    compute: Callable[..., Float[Array, "b gh gw"]]
    class_specific: bool
    title: str
    caption: str


def attention_rollout(
    model: Model,
    images: Images,
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    start: int = 0,
    residual: float = 0.5,
    token: int | None = None,
) -> Float[Array, "b gh gw"]:
    """Maps what the pooled token draws from the patches by `rollout` over all layers.

    The map is `read_map` of R = Ā_L ⋯ Ā_s (arXiv:2005.00928). A MAP head's own
    attention, its heads fused in the same way, says how the patches are pooled.
    Class-agnostic: the map cannot depend on a class. The weights of one layer are in
    memory at a time.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`.
      fusion: "mean", "max" or "min" over heads.
      discard: share of the weights between patches to set to zero, as in `discarded`.
      start: index of the first layer of the product.
      residual: share of the identity, for the residual connection.
      token: index of one token to read instead of the pooled ones, as in `read_map`.

    Raises:
      UserError: the model has no attention, or an argument is invalid.
    """
    a = attending(model)
    first = layer_index(start, a.depth, "start")

    def maps(images, _):
        run = Blockwise(model)
        last = run.embed(images)

        def matrices():
            nonlocal last
            for tokens, found in run.forward(last, ("attention",)):
                last = tokens
                yield found["attention"]

        matrix = product(
            averaged(
                fuse_heads(weights, fusion), discard, residual, a.num_prefix_tokens
            )
            for weights in islice(matrices(), first, None)
        )
        pooling = None
        if a.pooling == "map":
            weights = run.pooling(last)[MAP_ATTENTION]
            pooling = _as_matrix(lambda x: fuse_heads(x, fusion), weights)
            pooling = pooling / pooling.sum(axis=-1, keepdims=True)
        return read_map(matrix, a, pooling, token=token)

    return in_chunks(maps, model, checked_images(model, images))


def gradient_rollout_maps(
    model: Model,
    images: Images,
    target: Target = None,
    *,
    discard: float = 0.0,
    start: int = 0,
    residual: float = 0.5,
) -> Float[Array, "b gh gw"]:
    """Maps what the pooled token draws from the patches by `gradient_rollout`.

    The map is `read_map` of Ā_L ⋯ Ā_s with Ā made of (mean over heads of A ⊙ ∂y/∂A)⁺
    (jacobgil/vit-explain). Class-specific. A MAP head's own attention is weighted by
    its own gradient.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`.
      target: y, as in `weights_and_gradients`.
      discard: as in `attention_rollout`.
      start: as in `attention_rollout`.
      residual: as in `attention_rollout`.

    Raises:
      UserError: the model has no attention, or an argument is invalid.
    """
    prefix = attending(model).num_prefix_tokens

    def fold(matrices):
        return product(averaged(x, discard, residual, prefix) for x in matrices)

    return _weighted(model, images, target, start, positive_of_mean, fold)


def relevance_maps(
    model: Model, images: Images, target: Target = None, *, start: int = 0
) -> Float[Array, "b gh gw"]:
    """Maps the relevance of patches for the pooled token (arXiv:2103.15679).

    The map is `read_map` of R = (I + Ā_L) ⋯ (I + Ā_s), where Ā is the mean over heads
    of (A ⊙ ∂y/∂A)⁺; see `relevance`. Class-specific. The weights by which a MAP head
    reads the patches are (A ⊙ ∂y/∂A)⁺ of its own attention.

    Args:
      model: a Vision Transformer.
      images: images in the model's value range, from `model.prepare`.
      target: y, as in `weights_and_gradients`.
      start: index of the first layer.

    Raises:
      UserError: the model has no attention, or an argument is invalid.
    """
    return _weighted(model, images, target, start, mean_of_positive, accumulated)


def _weighted(model, images, target, start, weigh, fold) -> Float[Array, "b gh gw"]:
    """Folds weights of attention that are weighted by their gradients, and reads R."""
    a = attending(model)
    images = checked_images(model, images)
    first = layer_index(start, a.depth, "start")

    def maps(images, target):
        head, blocks = differentiated(model, images, target, "attention", first)
        # They come from the last layer, one [b, n, n] for each.
        matrices = [weigh(block.value, block.gradient) for block in blocks]
        pooling = None
        if MAP_ATTENTION in head.values:
            both = (head.values[MAP_ATTENTION], head.gradients[MAP_ATTENTION])
            pooling = _as_matrix(weigh, *both)
        return read_map(fold(reversed(matrices)), a, pooling)

    return in_chunks(maps, model, images, resolved(model, len(images), target))


def _as_matrix(fuse, *arrays):
    """Fuses arrays [b, heads, m] of a MAP head, whose matrices have one row."""
    return fuse(*(x[:, :, None] for x in arrays))[:, 0]


def _attention(model: Model, images: Images, target: Target = None):
    del target
    layer = MAP_HEAD if attending(model).pooling == "map" else -1
    return attention_maps(model, images, layer, "mean")


# Name → the map, in the order in which they are shown.
MAPS: dict[str, Map] = {
    "attention": Map(
        _attention,
        False,
        "Attention",
        "How much the pooled token reads each patch in the last layer, mean over "
        "heads; class-agnostic.",
    ),
    "rollout": Map(
        lambda model, images, target=None: attention_rollout(model, images),
        False,
        "Attention rollout",
        "Attention followed through all layers, half of each being the residual "
        "connection; class-agnostic.",
    ),
    "gradient_rollout": Map(
        gradient_rollout_maps,
        True,
        "Gradient rollout",
        "Rollout of attention weighted by the gradient of the target, where the "
        "product is positive.",
    ),
    "relevance": Map(
        relevance_maps,
        True,
        "Relevance",
        "Positive products of attention and the gradient of the target, accumulated "
        "over all layers.",
    ),
    "grad_cam": Map(
        grad_cam,
        True,
        "Grad-CAM",
        "Channels of the tokens weighted by the mean gradient of the target, where the "
        "sum is positive.",
    ),
    "hires_cam": Map(
        hires_cam,
        True,
        "HiResCAM",
        "Each patch's token times the gradient of the target there, summed over "
        "channels.",
    ),
    "eigen_cam": Map(
        eigen_cam,
        False,
        "Eigen-CAM",
        "The first principal component of the patch tokens; class-agnostic.",
    ),
}
