"""Class activation maps: tokens of one layer, weighted by gradients there."""

from collections.abc import Callable
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.inspect.arguments import checked_images, in_chunks, layer_index
from vit_jax.inspect.blockwise import NORMED, Blockwise
from vit_jax.inspect.gradients import differentiated
from vit_jax.inspect.targets import Target, resolved
from vit_jax.model import Model
from vit_jax.models import Architecture

# Where tokens are read: the input of a block's attention, or the block's result. A
# third place is `NORMED`.
NORM1, TOKENS = "norm1", "tokens"
# Pooling → where, unless the caller says. A class token reads the patches for the last
# time in the attention of the last block.
_WHERE = {"cls": NORM1, "cls_gap": NORM1, "gap": TOKENS, "map": TOKENS}

Images = Float[Array | np.ndarray, "b h w c"]


def grad_cam(
    model: Model,
    images: Images,
    target: Target = None,
    layer: int = -1,
    *,
    where: str | None = None,
) -> Float[Array, "b gh gw"]:
    """Computes Grad-CAM on patch tokens (arXiv:1610.02391).

    map_p = (Σ_d w_d X_pd)⁺, where w_d is the mean over patches of ∂y/∂X_pd.
    Class-specific.

    With pooling "cls", the gradient with respect to the last block's tokens is zero at
    every patch, since nothing reads them.

    Args:
      model: a Vision Transformer or a Mixer.
      images: images in the model's value range, from `model.prepare`.
      target: y, as in `weights_and_gradients`.
      layer: index of the block; −1 for the last.
      where: X, "norm1", what the block's attention reads (a Mixer has none); "tokens",
        the block's result; or, for the last block, "normed", its result after a final
        norm that precedes pooling. By default "norm1" if a class token is pooled, and
        "tokens" otherwise.

    Raises:
      UserError: an argument is invalid, or the map would be blank.
    """
    place, index = _place(model, where, layer)
    return _weighted(_grad_cam, model, images, target, place, index)


def hires_cam(
    model: Model,
    images: Images,
    target: Target = None,
    layer: int = -1,
    *,
    where: str | None = None,
) -> Float[Array, "b gh gw"]:
    """Computes HiResCAM on patch tokens (arXiv:2011.08891).

    map_p = Σ_d ∂y/∂X_pd X_pd, with its sign: where it is negative, more of the token
    lowers y; pytorch-grad-cam shows such patches as 0. Class-specific.

    If tokens are read through a norm alone, y does not depend on their lengths and the
    sum is zero. So the default is after the final norm where no class token is pooled;
    with a linear head on the mean of the patches, the map then sums to y less its bias.

    Args:
      model: a Vision Transformer or a Mixer.
      images: images in the model's value range, from `model.prepare`.
      target: y, as in `weights_and_gradients`.
      layer: as in `grad_cam`.
      where: X, as in `grad_cam`; by default "normed" instead of "tokens" if a norm
        precedes pooling.

    Raises:
      UserError: an argument is invalid, or the map would be blank.
    """
    place, index = _place(model, where, layer)
    if place == TOKENS and (instead := _after_only_norm(model, index)):
        if where is not None:
            raise UserError(
                "the map would be blank: these tokens are read through a norm alone, "
                "so the target does not depend on their lengths; use "
                f'where="{instead}" of the last block, or grad_cam'
            )
        place, index = instead, model.architecture.depth - 1
    return _weighted(_hires_cam, model, images, target, place, index)


def eigen_cam(
    model: Model,
    images: Images,
    target: Target = None,
    layer: int = -1,
    *,
    where: str | None = None,
) -> Float[Array, "b gh gw"]:
    """Computes Eigen-CAM, the first principal component of an image's patch tokens.

    map = X̄ v, where X̄ has the patch tokens less their mean, and v is its first right
    singular vector (arXiv:2008.00299, centred as in pytorch-grad-cam). The sign of v is
    arbitrary; it is chosen so that the entry of largest magnitude is positive.
    Class-agnostic: the map cannot depend on a class.

    Args:
      model: a Vision Transformer or a Mixer.
      images: images in the model's value range, from `model.prepare`.
      target: not used; here so that all maps are called alike.
      layer: as in `grad_cam`.
      where: X, as in `grad_cam`.

    Raises:
      UserError: an argument is invalid.
    """
    del target
    place, index = _place(model, where, layer)
    names = () if place == NORMED else (place,)

    def maps(images, _):
        run = Blockwise(model)
        blocks = islice(run.forward(run.embed(images), names), index + 1)
        *_, (tokens, found) = blocks
        found = run.pooling(tokens) if place == NORMED else found
        return _on_grid(_eigen_cam(_patches(model, found[place])), model)

    return in_chunks(maps, model, checked_images(model, images))


def normalized(maps: Float[Array | np.ndarray, "b gh gw"]) -> Float[Array, "b gh gw"]:
    """Scales each map to [0, 1]: (x − min) / (max − min + 1e-7).

    The small number, as in pytorch-grad-cam, makes a constant map 0.
    """
    maps = jnp.asarray(maps)
    maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-7)


def _weighted(
    cam: Callable, model: Model, images, target, place: str, index: int
) -> Float[Array, "b gh gw"]:
    a = model.architecture
    if place != NORM1 and index == a.depth - 1 and _pools_only_tokens(model):
        raise UserError(
            "the map would be blank: with pooling cls nothing reads the patch tokens "
            "after the last block, so their gradient is zero; use "
            f'where="{NORM1}" or an earlier layer'
        )
    images = checked_images(model, images)

    def maps(images, target):
        if place == NORMED:
            head, _ = differentiated(model, images, target, TOKENS)
            values = (head.values[NORMED], head.gradients[NORMED])
        else:
            _, blocks = differentiated(model, images, target, place, index)
            *_, block = blocks
            values = (block.value, block.gradient)
        return _on_grid(cam(*(_patches(model, x) for x in values)), model)

    return in_chunks(maps, model, images, resolved(model, len(images), target))


def _place(model: Model, where: str | None, layer: int) -> tuple[str, int]:
    """Returns where tokens are read, and the index of the block.

    Raises:
      UserError: the model has no such place.
    """
    a = model.architecture
    index = layer_index(layer, a.depth)
    attends = isinstance(a, Architecture)
    choices = [*([NORM1] if attends else []), TOKENS]
    choices += (
        [NORMED] if _norm_precedes_pooling(model) and index == a.depth - 1 else []
    )
    if where is None:
        return (_WHERE[a.pooling] if attends else TOKENS), index
    if where not in choices:
        raise UserError(
            f"where={where!r}: this model has {', '.join(choices)} in block {index}"
        )
    return where, index


def _after_only_norm(model: Model, index: int) -> str:
    """Returns where the norm's result is, if only a norm reads a block's tokens.

    "" if anything else reads the patches among them.
    """
    a = model.architecture
    if _pools_only_tokens(model):
        return NORM1 if index == a.depth - 2 else ""
    return NORMED if index == a.depth - 1 and _norm_precedes_pooling(model) else ""


def _pools_only_tokens(model: Model) -> bool:
    """Whether nothing reads the patches after the last block."""
    a = model.architecture
    return isinstance(a, Architecture) and a.pooling == "cls"


def _norm_precedes_pooling(model: Model) -> bool:
    a = model.architecture
    return not isinstance(a, Architecture) or a.norm == "before_pool"


def _patches(model: Model, tokens: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    return tokens[:, model.architecture.num_prefix_tokens :].astype(jnp.float32)


def _on_grid(maps: Float[Array, "b m"], model: Model) -> Float[Array, "b gh gw"]:
    return maps.reshape(len(maps), *model.architecture.grid)


@jax.jit
def _grad_cam(x: Float[Array, "b m d"], gradient: Float[Array, "b m d"]):
    weights = gradient.mean(axis=1)
    return jnp.maximum(jnp.einsum("bmd,bd->bm", x, weights), 0)


@jax.jit
def _hires_cam(x: Float[Array, "b m d"], gradient: Float[Array, "b m d"]):
    return (x * gradient).sum(axis=-1)


@jax.jit
def _eigen_cam(x: Float[Array, "b m d"]):
    centred = x - x.mean(axis=1, keepdims=True)
    left, values, _ = jnp.linalg.svd(centred, full_matrices=False)
    component = left[:, :, 0] * values[:, :1]
    largest = jnp.argmax(jnp.abs(component), axis=1, keepdims=True)
    return component * jnp.sign(jnp.take_along_axis(component, largest, axis=1))
