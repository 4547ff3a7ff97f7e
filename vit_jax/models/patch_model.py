"""The fields and the first layer that a Vision Transformer and an MLP-Mixer share."""

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
    """The base of models from images to logits.

    A model can be called as a whole, or in parts: `embed`, `encode`, `pool` and `head`,
    each with `model.apply(variables, …, method="embed")`. The fields after the
    architecture do not change the function.

    Attributes:
      architecture: the function.
      dtype: dtype of activations. Parameters, statistics of norms, softmax and logits
        are always float32.
      scan: run the blocks as one compiled loop, over parameters stacked in the step.
      scan_apart: number of the first blocks that get a loop of their own. If none of
        them is trained, nothing in it is kept for the backward pass.
      remat: what the backward pass recomputes to save memory; a name in
        `encoder.REMAT`.
      dropout_rate: dropout rate, in training only.
      stochastic_depth: probability that an example skips a branch of the last block
        (arXiv:1603.09382); in training only.
      stochastic_depth_form: how the other blocks' probabilities follow from it; a name
        in `dropout.DEPTH_FORMS`.
      head_bias: initial bias of the head.
      head_std: standard deviation of the head's initial kernel, which is normal around
        0; 0 = all zeros.
      placement: where arrays lie, if there are several devices.
    """

    architecture: ViTOrMixer
    dtype: Any = jnp.float32
    scan: bool = False
    scan_apart: int = 0
    remat: str = "none"
    dropout_rate: float = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_form: str = "linear"
    head_bias: float = 0.0
    head_std: float = 0.0
    placement: Placement = Placement()

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        return bool(self.dropout_rate or self.stochastic_depth)

    def dropout_keys(self, train: bool) -> tuple[Any, ...]:
        """Draws a key for each block and one for the embedding, which comes last.

        The parts of a model take all of them. If nothing is dropped, they are all None;
        otherwise the call needs `rngs={"dropout": key}`.
        """
        # Split into one key per block here, so that a loop and a scan draw the same.
        count = self.architecture.depth + 1
        if train and self.drops:
            return tuple(jax.random.split(self.make_rng("dropout"), count))
        return (None,) * count


def check_images(
    images: Array | np.ndarray, architecture: ViTOrMixer, any_size: bool = False
) -> None:
    """Rejects images that an architecture cannot read.

    Args:
      images: images in the model's value range.
      architecture: the model's architecture.
      any_size: accept every size that can be cut into patches.

    Raises:
      ValueError: the images have another shape or are not floating point.
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
      ValueError: lists the unknown names and the choices.
    """
    if unknown := [name for name in wanted if name not in choices]:
        raise ValueError(
            f"this architecture has no intermediates "
            f"{', '.join(map(repr, unknown))}; choose from {', '.join(choices)}"
        )


def embed_patches(
    x: Float[Array, "b h w c"], architecture: ViTOrMixer, layers: Layers
) -> Float[Array, "b gh gw d"]:
    """Multiplies each patch by one matrix (arXiv:2010.11929, eq. 1).

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
