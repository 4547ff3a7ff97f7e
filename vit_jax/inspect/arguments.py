"""Arguments that the maps share: their checks, and images a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models import Architecture
from vit_jax.models.patch_model import check_images

# Weights of attention of one block that are computed at once. A backward pass through
# the block holds a few arrays of this size.
_BYTES = 1 << 26


def checked_images(model: Model, images: Any) -> Float[Array, "b h w c"]:
    """Returns images as a float32 array.

    Raises:
      UserError: they have another shape or type than the model's input.
    """
    found = images if hasattr(images, "dtype") else np.asarray(images)
    try:
        check_images(found, model.architecture)
    except ValueError as error:
        raise UserError(
            f"{error}. model.prepare(images) makes them from files and arrays"
        ) from error
    return jnp.asarray(found, jnp.float32)


def attending(model: Model) -> Architecture:
    """Returns the architecture of a model with attention.

    Raises:
      UserError: the model is a Mixer.
    """
    if not isinstance(model.architecture, Architecture):
        raise UserError(
            "this model is an MLP-Mixer, which has no attention: use grad_cam, "
            'hires_cam or eigen_cam with where="tokens"'
        )
    return model.architecture


def layers_from(start: int, depth: int) -> range:
    """Returns the indices of the layers from one on; −1 starts at the last.

    Raises:
      UserError: there is no such layer.
    """
    return range(layer_index(start, depth, "start"), depth)


def layer_index(layer: Any, depth: int, name: str = "layer") -> int:
    """Returns the index of a layer, counted from the first.

    Raises:
      UserError: there is no such layer.
    """
    whole = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
    if not whole or not -depth <= layer < depth:
        raise UserError(
            f"{name}={layer!r}: there are {depth} layers; expected an index from 0 to "
            f"{depth - 1} or from {-depth} to -1"
        )
    return int(layer) % depth


def in_chunks(
    compute: Callable[..., Array], model: Model, images: Array, target: Any = ()
) -> Array:
    """Computes maps of images a few at a time, in bounded memory.

    Args:
      compute: function of some images and their part of `target` that returns an array
        with a row for each image.
      model: the model, whose size decides how many they are.
      images: all images.
      target: a pytree; its arrays with a row for each image are cut like these.
    """
    b, size = len(images), _images_at_once(model)
    if b <= size:
        return compute(images, target)
    parts = []
    for first in range(0, b, size):
        # The last images are repeated, so that all parts use one program.
        rows = np.minimum(np.arange(first, first + size), b - 1)
        of_part = jax.tree.map(lambda x, rows=rows: _rows(x, rows, b), target)
        parts.append(compute(images[rows], of_part))
    return jnp.concatenate(parts)[:b]


def _rows(x, rows, b):
    return x[rows] if np.ndim(x) and len(x) == b else x


def _images_at_once(model: Model) -> int:
    a = model.architecture
    heads = a.num_heads if isinstance(a, Architecture) else 1
    return max(1, _BYTES // (4 * heads * a.num_tokens**2))
