"""Normalisation of images on the device, from uint8 to the model's value range."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vit_jax.data.preprocessing import Preprocessing


def normalised(
    images: UInt8[Array, "*b h w c"] | Float[Array, "*b h w c"],
    preprocessing: Preprocessing,
) -> Float[Array, "*b h w c"]:
    """Converts pixels to the model's value range; floats are in it already.

    A loss calls this on its microbatch, so that the rest of the batch stays uint8, a
    quarter of the memory. Code that changes the whole batch before that, such as mixup,
    calls it there.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return preprocessing.normalize(images)


def renormalised(
    images: UInt8[Array, "b h w c"] | Float[Array, "b h w c"],
    ours: Preprocessing,
    theirs: Preprocessing,
) -> Float[Array, "b h w c2"]:
    """Converts images to another model's value range.

    Normalisation is an affine function of each channel, and so is this, which is
    therefore exact after any mixing. Grey images become three equal channels if the
    other model takes colours.

    Args:
      images: uint8, or floats in our value range.
      ours: with the images' number of channels.
      theirs: with the same number, or 3 where ours is 1.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        return theirs.normalize(images)
    if (ours.mean, ours.std) == (theirs.mean, theirs.std):
        return images

    def row(values: tuple[float, ...]) -> np.ndarray:
        return np.asarray(values, np.float32).reshape(1, 1, 1, -1)

    scale = row(ours.std) / row(theirs.std)
    return images * scale + (row(ours.mean) - row(theirs.mean)) / row(theirs.std)
