"""Models without positions, and images of shuffled patches: what positions do."""

import copy
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models import Architecture
from vit_jax.models.flexible import is_flexible
from vit_jax.words import pair


def without_positions(model: Model) -> Model:
    """Returns a copy of a model that adds no positions to its tokens.

    Learned positions are zero in the copy, those of tokens before the patches too.
    Sines and cosines are not parameters: in their place, the copy has learned positions
    that are zero. Such a model cannot tell in what order an image's patches come,
    unless a ResNet before them sees across their borders.

    Raises:
      UserError: it is an MLP-Mixer, which has no positions.
    """
    a = model.architecture
    if not isinstance(a, Architecture):
        raise UserError(
            "an MLP-Mixer has no positions to remove: its MLPs over the patches have a "
            "weight for every place"
        )
    if a.posemb != "learned":
        fields: dict[str, Any] = {"posemb": "learned"}
        if is_flexible(a):
            # Zeros stay zeros, whatever the method.
            fields |= {"flexible_grid": a.grid, "flexible_resize": "bilinear"}
        a = dataclasses.replace(a, **fields)
    params = dict(model.params)
    params["pos_embed"] = jnp.zeros((1, *a.position_grid, a.width))
    if a.num_position_prefix:
        params["pos_embed_prefix"] = jnp.zeros_like(params["pos_embed_prefix"])
    bare = copy.copy(model)
    bare.module, bare.params = model.module.clone(architecture=a), params
    return bare


def shuffled(images: Any, patch_size: int | tuple[int, int], seed: int = 0) -> Any:
    """Shuffles the patches of images, all images in the same order.

    Args:
      images: arrays [b, h, w, c], NumPy's or JAX's, of any type.
      patch_size: side or (height, width) of the patches, in pixels; that of the model
        if a model without positions is to see no difference.
      seed: of the order, which is drawn by NumPy.

    Returns:
      An array of the same kind, shape and type.

    Raises:
      UserError: the images have another number of axes, or cannot be cut into such
        patches.
    """
    try:
        height, width = pair(patch_size)
    except (TypeError, ValueError):
        raise UserError(
            f"patch_size={patch_size!r}: expected a number of pixels, or (height, "
            "width)"
        ) from None
    shape = np.shape(images)
    if len(shape) != 4:
        raise UserError(
            f"images have shape {shape}; expected (batch, height, width, channels)"
        )
    b, h, w, c = shape
    if min(height, width) < 1 or h % height or w % width:
        raise UserError(
            f"images of {h}×{w} pixels cannot be cut into patches of {height}×{width}"
        )
    rows, columns = h // height, w // width
    order = np.random.default_rng(seed).permutation(rows * columns)
    x = images.reshape(b, rows, height, columns, width, c).swapaxes(2, 3)
    x = x.reshape(b, rows * columns, height, width, c)[:, order]
    x = x.reshape(b, rows, columns, height, width, c).swapaxes(2, 3)
    return x.reshape(shape)
