"""The patch embedding as a product of flattened patches with one matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.model import Model
from vit_jax.models import Architecture, VisionTransformer
from vit_jax.models.flexible import resize_patches
from vit_jax.models.patch_model import check_images


class PatchEmbedding(NamedTuple):
    """Both forms of a patch embedding; n patches of k = height · width · channels."""

    patches: Float[Array, "b n k"]  # flattened: rows, then columns, then channels
    matrix: Float[Array, "k d"]  # the convolution's kernel, flattened in this order
    bias: Float[Array, " d"]
    by_matrix: Float[Array, "b n d"]  # patches · matrix + bias
    by_convolution: Float[Array, "b n d"]  # what the model's own layer computes
    difference: float  # the largest absolute difference of the two


def patch_embedding_as_matrix(
    model: Model, images: Float[Any, "b h w c"]
) -> PatchEmbedding:
    """Embeds patches by flattening and multiplying them (arXiv:2010.11929, eq. 1).

    The model's own layer is a convolution whose stride is its window; both compute the
    same function, in float32 here. Positions are not added.

    Args:
      model: a model whose patches are cut from the image.
      images: images of the model's size, in its value range, as from `model.prepare`.

    Raises:
      UserError: the images have another shape or type, or the patches are cut from the
        features of a ResNet.
    """
    a = model.architecture
    if isinstance(a, Architecture) and a.trunk is not None:
        raise UserError(
            "this model cuts its patches from the features of a ResNet, so no matrix "
            "leads from the image's patches to its tokens"
        )
    try:
        check_images(images, a)
    except ValueError as error:
        raise UserError(str(error)) from error
    images = jnp.asarray(images, jnp.float32)
    module = model.module.clone(dtype=jnp.float32)
    own = "_embedded" if isinstance(module, VisionTransformer) else "patches"
    with jax.default_matmul_precision("highest"):
        tokens: Any = module.apply({"params": model.params}, images, method=own)
        b, gh, gw, d = tokens.shape
        layer = model.params["patch_embed"]
        # A flexible model stores the kernel for patches of another size.
        kernel = resize_patches(layer["kernel"], a.embed_window)
        patches = flattened(images, a.patch_size)
        matrix = jnp.reshape(kernel, (-1, d))
        by_matrix = patches @ matrix + layer["bias"].reshape(1, 1, d)
    by_convolution = tokens.reshape(b, gh * gw, d)
    return PatchEmbedding(
        patches,
        matrix,
        layer["bias"],
        by_matrix,
        by_convolution,
        float(jnp.abs(by_matrix - by_convolution).max()),
    )


def flattened(
    images: Float[Array, "b h w c"], patch_size: tuple[int, int]
) -> Float[Array, "b n k"]:
    """Cuts images into patches, row by row, and flattens each to one vector."""
    b, h, w, c = images.shape
    height, width = patch_size
    x = images.reshape(b, h // height, height, w // width, width, c)
    return x.swapaxes(2, 3).reshape(b, -1, height * width * c)
