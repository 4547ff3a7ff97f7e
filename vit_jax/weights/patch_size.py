"""Weights at another patch size than the one that they are described for."""

import dataclasses
import logging

from vit_jax.config.flexible import not_dividing
from vit_jax.errors import UserError
from vit_jax.models.decoder import DECODER
from vit_jax.models.flexible import fixed
from vit_jax.weights.adapt import adapt
from vit_jax.weights.contents import Weights, split_params
from vit_jax.words import times

logger = logging.getLogger(__name__)


def check_divides(patch_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Rejects a patch size that does not divide the image size.

    Raises:
      UserError: names the nearest sizes that do.
    """
    if lines := not_dividing([patch_size], image_size):
        raise UserError(
            f"images of {times(image_size)} pixels cannot be cut into patches of "
            f"{lines[0]}"
        )


def at_patch_size(weights: Weights, patch_size: tuple[int, int]) -> Weights:
    """Resizes weights to an ordinary model of one patch size; logs what was changed.

    Args:
      weights: the weights.
      patch_size: (height, width) in pixels, which divides their image size.

    Raises:
      UserError: it does not, or this kind of model has a single patch size.
    """
    about = weights.description
    source, decoder = about.architecture, about.decoder
    check_divides(patch_size, source.image_size)
    target = dataclasses.replace(fixed(source), patch_size=patch_size)
    params, beside = split_params(weights)
    if decoder is not None and target.patch_size != source.patch_size:
        logger.warning(
            "the decoder was left out, because it predicts patches of %s pixels",
            times(source.patch_size),
        )
        decoder = None
        beside.pop(DECODER)
    params = adapt(params, source, target, posemb_resize=about.config["posemb_resize"])
    changed = dataclasses.replace(about, architecture=target, decoder=decoder)
    return Weights(changed, params | beside)
