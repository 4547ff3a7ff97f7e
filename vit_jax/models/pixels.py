"""The pixels of patches: cut from images, normalised, and put together again."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EPSILON = 1e-6  # of the published code, beside the variance


def patch_values(
    images: Float[Array, "b h w c"], patch_size: tuple[int, int]
) -> Float[Array, "b n v"]:
    """Cuts images into patches: their values row by row, channels last."""
    b, height, width, c = images.shape
    ph, pw = patch_size
    x = images.reshape(b, height // ph, ph, width // pw, pw, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, ph * pw * c)


def from_patch_values(
    values: Float[Array, "b n v"],
    grid: tuple[int, int],
    patch_size: tuple[int, int],
) -> Float[Array, "b h w c"]:
    """Inverts `patch_values` for a (height, width) grid of patches."""
    (gh, gw), (ph, pw) = grid, patch_size
    x = values.reshape(values.shape[0], gh, gw, ph, pw, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], gh * ph, gw * pw, -1)


def normalized_patches(values: Float[Array, "b n v"]) -> Float[Array, "b n v"]:
    """Returns (values − mean) / √(variance + 1e-6) of each patch.

    The variance is the unbiased one, over v − 1, as in the published code.
    """
    mean, scale = _statistics(values)
    return (values - mean) / scale


def denormalized_patches(
    normalized: Float[Array, "b n v"], values: Float[Array, "b n v"]
) -> Float[Array, "b n v"]:
    """Inverts `normalized_patches` with the mean and variance of true values."""
    mean, scale = _statistics(values)
    return normalized * scale + mean


def masked_mean(
    values: Float[Array, "b n"], masked: Bool[Array, "b n"]
) -> Float[Array, " b"]:
    """Returns the mean over the masked patches of each image."""
    return jnp.sum(values * masked, axis=1) / jnp.sum(masked, axis=1)


def _statistics(
    values: Float[Array, "b n v"],
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    mean = jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.var(values, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + _EPSILON)
