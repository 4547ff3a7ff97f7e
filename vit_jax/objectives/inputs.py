"""Normalisation of images on the device, from uint8 to the model's value range."""

import jax.numpy as jnp
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
