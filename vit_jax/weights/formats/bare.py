"""Files of PyTorch's libraries that hold tensors alone, with nothing beside them.

How images are prepared, and some facts of the model, are then those that the library
usually has: an assumption when such a file is read, and a loss when it is written.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture
from vit_jax.weights.formats.companion import one_a_channel
from vit_jax.weights.formats.geometry import Geometry, to_chain, usual_spelling
from vit_jax.weights.formats.layout import Hints, Reading
from vit_jax.weights.formats.meaning import usual_outputs

EPSILON = 1e-6  # of LayerNorm, in both torchvision and mmpretrain


class Usual(NamedTuple):
    """How a library usually prepares the images of a model.

    Attributes:
      mean, std: per channel of RGB.
      chain: the evaluation's chain of operations.
      origin: whose preprocessing it is, for messages.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    chain: str
    origin: str


def resized_and_cropped(
    image_size: tuple[int, int], surplus: float, interpolation: str
) -> str:
    """Writes the chain of a resize to `surplus` times the size, then a central crop."""
    geometry = Geometry(
        keeps_aspect=True,
        size=(round(image_size[0] * surplus), round(image_size[1] * surplus)),
        interpolation=interpolation,
        side_rounding="down",
        crop_rounding="nearest",
    )
    return to_chain(geometry, image_size)


def assume(
    a: Architecture, hints: Hints, usual: Usual, library: str, assumed: Sequence[str]
) -> Reading:
    """Makes the reading of a file, with the library's usual preprocessing.

    Args:
      a: the architecture.
      hints: the caller's preprocessing is taken instead, if there is one.
      usual: the preprocessing to assume.
      library: its name.
      assumed: what was assumed of the architecture.
    """
    sentences = []
    if hints.preprocessing is not None:
        preprocessing = dataclasses.replace(
            hints.preprocessing, image_size=a.image_size, channels=a.channels
        )
    else:
        preprocessing = Preprocessing(
            a.image_size,
            a.channels,
            usual.chain,
            one_a_channel(usual.mean, a.channels),
            one_a_channel(usual.std, a.channels),
        )
        sentences = [
            f"files of {library} do not record the preprocessing: assumed RGB images "
            f"with mean {preprocessing.mean}, standard deviation {preprocessing.std} "
            f"and {usual.chain!r}, those of {usual.origin}"
        ]
    return Reading(
        a,
        preprocessing,
        assumed=(*assumed, *sentences),
        posemb_resize="bicubic_torch",
        outputs=usual_outputs(a.num_classes),
    )


def lost(a: Architecture, p: Preprocessing, usual: Usual, library: str) -> list[str]:
    """Lists what a file of tensors alone does not tell the library."""
    differs = {
        f"{library} uses {EPSILON:g} as the LayerNorm's epsilon, where this model has "
        f"{a.layernorm_epsilon:g}": a.layernorm_epsilon != EPSILON,
        f"the file does not record how images are prepared: mean {p.mean}, standard "
        f"deviation {p.std} and {p.eval_transform!r}": (
            (p.mean, p.std, usual_spelling(p)) != usual[:3]
        ),
    }
    return [sentence for sentence, present in differs.items() if present]
