"""Fields that a Vision Transformer and an MLP-Mixer share, and their first layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.models.architecture import ViTOrMixer
from vit_jax.models.layers import Layers
from vit_jax.models.placement import Placement


class PatchModel(nn.Module):
    """Images to logits; fields after the architecture leave the function as it is.

    A model is called as a whole, or in parts: `embed`, `encode`, `pool` and `head`,
    each with `model.apply(variables, …, method="embed")`.

    Attributes:
      architecture: the function.
      dtype: of activations. Parameters, statistics of norms, softmax and logits are
        float32 whatever it is.
      scan: run the blocks as one compiled loop, over parameters stacked in the step.
      remat: what the backward pass recomputes, which saves memory; a name of
        `encoder.REMAT`.
      dropout_rate: in training only.
      stochastic_depth: probability that an example skips a branch of the last block,
        rising linearly from 0 in the first (arXiv:1603.09382); in training only.
      head_bias: initial bias of the head.
      placement: where arrays lie, if there are several devices.
    """

    architecture: ViTOrMixer
    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"
    dropout_rate: float = 0.0
    stochastic_depth: float = 0.0
    head_bias: float = 0.0
    placement: Placement = Placement()

    def dropout_keys(self, train: bool) -> tuple[Any, ...]:
        """Draws a key for each block and one for the embedding, which comes last.

        The parts of a model take them together. They are all None where nothing drops;
        otherwise the call needs `rngs={"dropout": key}`.
        """
        # Split here, a key a block, so that any way of running the blocks draws alike.
        count = self.architecture.depth + 1
        if train and (self.dropout_rate or self.stochastic_depth):
            return tuple(jax.random.split(self.make_rng("dropout"), count))
        return (None,) * count


def check_images(
    images: Array | np.ndarray, architecture: ViTOrMixer, any_size: bool = False
) -> None:
    """Rejects images that an architecture cannot read.

    Args:
      images: in the model's value range.
      architecture: of the model.
      any_size: accept every size that can be cut into patches.

    Raises:
      ValueError: images of another shape or not floating point.
    """
    a = architecture
    if any_size and images.ndim == 4 and images.shape[3] == a.channels:
        height, width = images.shape[1:3]
        try:
            a = dataclasses.replace(a, image_size=(height, width))
        except ValueError as error:
            raise ValueError(f"images have shape {images.shape}: {error}") from error
    expected = (*a.image_size, a.channels)
    if images.shape[1:] != expected or images.ndim != 4:
        raise ValueError(
            f"images have shape {images.shape}, expected (batch, height, width, "
            f"channels) with {expected} after the batch"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}, expected floating point in the model's "
            "value range: normalise them first"
        )


def check_intermediates(wanted: Sequence[str], choices: Sequence[str]) -> None:
    """Rejects names of intermediates that a model does not compute.

    Raises:
      ValueError: lists the names, and those to choose from.
    """
    if unknown := [name for name in wanted if name not in choices]:
        raise ValueError(
            f"no intermediates {', '.join(map(repr, unknown))} in this "
            f"architecture, choose from {', '.join(choices)}"
        )


def embed_patches(
    x: Float[Array, "b h w c"], architecture: ViTOrMixer, layers: Layers
) -> Float[Array, "b gh gw d"]:
    """Multiplies each patch with one matrix (arXiv:2010.11929, eq. 1).

    Declares `patch_embed` in the module that is being called.
    """
    a = architecture
    return layers.conv(
        a.width,
        kernel_size=a.embed_kernel,
        strides=a.embed_kernel,
        padding="VALID",
        name="patch_embed",
    )(x)
