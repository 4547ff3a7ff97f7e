"""Images on the device: from uint8 pixels to the value range of a model."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vit_jax.data.preprocessing import Preprocessing


def normalised(
    images: UInt8[Array, "*b h w c"] | Float[Array, "*b h w c"],
    preprocessing: Preprocessing,
) -> Float[Array, "*b h w c"]:
    """Pixels in the model's value range; floats are in it already.

    A loss calls this for its microbatch, where bytes take a quarter of the memory. What
    changes the whole batch before that, such as mixup, calls it there.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return preprocessing.normalize(images)
