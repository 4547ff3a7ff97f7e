"""Reconstruction of images by a masked autoencoder from the patches that it sees."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vit_jax.errors import UserError
from vit_jax.models import Architecture, VisionTransformer
from vit_jax.models.decoder import (
    Decoder,
    DecoderFacts,
    build_decoder,
    make_masking,
    num_kept,
    unfit_mask_ratio,
)
from vit_jax.models.pixels import (
    denormalized_patches,
    from_patch_values,
    masked_mean,
    normalized_patches,
    patch_values,
)
from vit_jax.words import shortened, times

_MASK_RATIO = 0.75  # of the published code


class DecoderOfModel(NamedTuple):
    """The decoder that a model was trained with.

    Attributes:
      facts: its description.
      params: nested dict of float32 arrays.
    """

    facts: DecoderFacts
    params: Any


class Reconstruction(NamedTuple):
    """The result of `Model.reconstruct`; images are in the model's value range.

    Attributes:
      pixels: what the decoder predicts for every patch. If it predicts normalised
        pixels, each patch has the true patch's mean and variance.
      masked: the images with 0 in the masked patches.
      combined: the images with the predicted pixels in the masked patches.
      mask: True for the patches that the encoder did not see, on their grid.
      loss: mean squared error over the masked patches of each image, in what the
        decoder was trained to predict.
    """

    pixels: Float[Array, "b h w c"]
    masked: Float[Array, "b h w c"]
    combined: Float[Array, "b h w c"]
    mask: Bool[Array, "b gh gw"]
    loss: Float[Array, " b"]


def reconstruct(
    module: VisionTransformer,
    params: Any,
    decoder: DecoderOfModel,
    images: Float[Array, "b h w c"],
    noise: Float[np.ndarray, "b n"],
    kept: np.ndarray,
) -> Reconstruction:
    """Reconstructs images from the patches with the smallest noise.

    Args:
      module: the encoder.
      params: its parameters.
      decoder: the decoder.
      images: images in the model's value range.
      noise: a number for each patch.
      kept: number of visible patches of each image, [b]. There is one program for each
        of these numbers.

    Raises:
      UserError: it is not known what the decoder predicts.
    """
    if decoder.facts.normalize_pixels is None:
        raise UserError(
            "nothing records what this model's decoder predicts: load it with "
            "normalize_pixels=True if its targets were normalised within each patch, "
            "else with normalize_pixels=False"
        )
    rows: list[Any] = [None] * len(images)
    for count in np.unique(kept):
        chosen = np.flatnonzero(kept == count)
        found = _reconstruct(
            module,
            build_decoder(module.architecture, decoder.facts, dtype=module.dtype),
            decoder.facts.normalize_pixels,
            int(count),
            params,
            decoder.params,
            images[chosen],
            jnp.asarray(noise[chosen]),
        )
        if len(chosen) == len(images):
            return found
        for place, index in enumerate(chosen):
            rows[index] = jax.tree.map(lambda x, place=place: x[place], found)
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def noise_and_kept(
    architecture: Architecture,
    count: int,
    mask: Any = None,
    noise: Any = None,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns a mask, or a noise and a ratio, into noise and numbers of visible patches.

    Args:
      architecture: the encoder.
      count: number of images.
      mask: an argument of `Model.reconstruct`, like the next ones.
      noise: numbers for the patches.
      mask_ratio: share of the patches to hide.
      seed: of the noise if there is none.

    Returns:
      Noise [count, n] whose smallest values are those of the visible patches, and their
      number [count].

    Raises:
      UserError: an argument is invalid, or an image has no visible or no masked patch.
    """
    patches = architecture.grid[0] * architecture.grid[1]
    if mask is not None:
        given = {"noise": noise is not None, "mask_ratio": mask_ratio is not None}
        if others := [name for name, there in given.items() if there]:
            raise UserError(f"pass either mask or {' and '.join(others)}, not both")
        masked = _patch_mask(architecture, count, mask)
        # Visible patches stay in their order, because sorting is stable.
        drawn, kept = masked.astype(np.float32), np.sum(~masked, axis=1)
    else:
        ratio = _MASK_RATIO if mask_ratio is None else mask_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise UserError(f"mask_ratio={ratio!r}: expected a number")
        drawn = _noise(count, patches, noise, seed)
        ratio = float(ratio)
        if problem := unfit_mask_ratio(patches, ratio):
            raise UserError(problem)
        kept = np.full(count, num_kept(patches, ratio))
    if wrong := np.flatnonzero((kept <= 0) | (kept >= patches)).tolist():
        states = [
            f"image {i}: {'all' if not kept[i] else 'none'} of its {patches} patches"
            for i in wrong
        ]
        raise UserError(
            "at least one patch of each image has to be visible and one masked; mask "
            f"has ({shortened(states)})"
        )
    return drawn, kept


def _patch_mask(a: Architecture, count: int, mask: Any) -> np.ndarray:
    """Reads a mask of patches, of their grid or of pixels as bool [b, n]."""
    found = np.asarray(mask)
    (gh, gw), (ph, pw) = a.grid, a.patch_size
    choices = {(gh * gw,): "patches", a.grid: "their grid", a.image_size: "pixels"}
    fits = found.ndim and found.shape[0] == count and found.shape[1:] in choices
    if found.dtype != bool or not fits:
        shapes = ", ".join(f"({', '.join(map(str, (count, *s)))})" for s in choices)
        raise UserError(
            f"mask is {found.dtype} of shape {found.shape}; expected bool, True for "
            f"what is hidden, of one of the shapes {shapes}: the patches row by row, "
            f"their grid of {times(a.grid)}, or pixels"
        )
    if found.shape[1:] == (gh * gw,) or found.shape[1:] == a.grid:
        return found.reshape(count, -1)
    # A patch is hidden if any of its pixels is.
    return found.reshape(count, gh, ph, gw, pw).any(axis=(2, 4)).reshape(count, -1)


def _noise(count: int, patches: int, noise: Any, seed: int) -> np.ndarray:
    if noise is None:
        key = jax.random.key(seed)
        return np.asarray(jax.random.uniform(key, (count, patches)))
    found = np.asarray(noise)
    if found.shape != (count, patches) or not np.issubdtype(found.dtype, np.floating):
        raise UserError(
            f"noise is {found.dtype} of shape {found.shape}; expected floats of shape "
            f"({count}, {patches}), a number for each patch"
        )
    if not np.isfinite(found).all():
        raise UserError("noise has values that are not finite numbers")
    return found


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _reconstruct(
    module: VisionTransformer,
    decoder: Decoder,
    normalizes: bool,
    kept: int,
    params: Any,
    decoder_params: Any,
    images: Any,
    noise: Any,
) -> Reconstruction:
    a = module.architecture
    masking = make_masking(noise, kept)
    tokens = module.apply(
        {"params": params}, images, masking.kept, method="encode_visible"
    )
    predicted = jnp.asarray(
        decoder.apply({"params": decoder_params}, tokens, masking.restore)
    )
    values = patch_values(images, a.patch_size)
    targets = normalized_patches(values) if normalizes else values
    losses = jnp.mean((predicted - targets) ** 2, axis=-1)
    shown = denormalized_patches(predicted, values) if normalizes else predicted
    hidden = masking.masked[..., None]

    def image(x: Array) -> Array:
        return from_patch_values(x, a.grid, a.patch_size)

    return Reconstruction(
        pixels=image(shown),
        masked=image(jnp.where(hidden, 0.0, values)),
        combined=image(jnp.where(hidden, shown, values)),
        mask=masking.masked.reshape(-1, *a.grid),
        loss=masked_mean(losses, masking.masked),
    )
