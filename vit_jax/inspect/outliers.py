"""Tokens of unusually large norm, which registers are meant to take (2309.16588)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from vit_jax.model import Model

# A normal distribution's σ is 1.4826 times its median absolute deviation.
_SIGMA_PER_MAD = 1.4826


class Outliers(NamedTuple):
    """Norms of the tokens after one block; the rule is relative to the layer."""

    layer: int
    norms: Float[np.ndarray, "b gh gw"]
    outliers: Bool[np.ndarray, "b gh gw"]  # norm > threshold
    threshold: float  # median + 5 · 1.4826 · MAD, over all patches of all images
    share: float  # of the patches
    ratio: float  # largest norm / median
    prefix_norms: Float[np.ndarray, "b p"]  # class token, …, registers


def outliers(
    patches: Float[Array | np.ndarray, "b layers gh gw d"],
    prefix: Float[Array | np.ndarray, "b layers p d"],
) -> list[Outliers]:
    """Finds the outliers of each layer by the norms of its output tokens.

    Absolute thresholds, such as 150 for DINOv2-g, do not transfer between models.

    Args:
      patches: tokens after blocks, before the final norm; see `Model.features`.
      prefix: the tokens before them; their norms do not enter the threshold.
    """
    found = []
    for layer in range(np.shape(patches)[1]):
        norms, others = (
            np.linalg.norm(np.asarray(x[:, layer], np.float64), axis=-1)
            for x in (patches, prefix)
        )
        median = float(np.median(norms))
        deviation = float(np.median(np.abs(norms - median)))
        threshold = median + 5 * _SIGMA_PER_MAD * deviation
        above = norms > threshold
        ratio = float(norms.max()) / median if median else float("nan")
        share = float(above.mean())
        found.append(Outliers(layer, norms, above, threshold, share, ratio, others))
    return found


def model_outliers(model: Model, images: Float[Array, "b h w c"]) -> list[Outliers]:
    """Finds the outliers after every block of a model.

    Raises:
      UserError: the images have another shape or type.
    """
    found = model.features(images, range(model.architecture.depth))
    return outliers(np.asarray(found.patches), np.asarray(found.prefix))
