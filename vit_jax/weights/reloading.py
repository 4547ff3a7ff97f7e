"""Facts about the outputs that readers of a file in a foreign format will not know."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.models import ViTOrMixer
from vit_jax.models.outputs import MEANINGS, NUMBERS, readable
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.layout import Format, Hints, Reading, piece_shapes
from vit_jax.words import plain, shortened


def lost_about_outputs(
    format: Format,
    description: Description,
    architecture: ViTOrMixer,
    arrays: Mapping[str, np.ndarray],
    companions: Mapping[str, Any],
) -> list[str]:
    """Lists sentences about meaning and class names that are lost.

    They are found by reading the names and shapes of what is written.

    Args:
      format: the format.
      description: the model's description.
      architecture: the architecture in the file.
      arrays: the file's tensors.
      companions: the content of the JSON files beside it.
    """
    classes = architecture.num_classes
    if not classes:
        return []
    found = _reading(format, architecture, arrays, companions)
    lost = []
    meaning = readable(found.outputs, classes)
    if meaning != description.outputs:
        ours, theirs = (
            MEANINGS[outputs].words for outputs in (description.outputs, meaning)
        )
        lost.append(
            f"{format.title} format has no place for what the outputs mean. This "
            f"model's are {ours}, but the file will be read as {theirs}: load it with "
            f"outputs={description.outputs!r} (in commands "
            f"--outputs={description.outputs})"
        )
    elif description.outputs == NUMBERS:
        lost.append(
            "the file says that the outputs are plain numbers, but the pipelines of "
            "transformers turn them into probabilities all the same: call them with "
            "function_to_apply='none'"
        )
    names = description.class_names
    if names and found.class_names != names:
        what = f"the names of the {classes:,} classes" if classes > 1 else "the name"
        lost.append(
            f"{format.title} format has no place for {what} ({shortened(names, plain)})"
            ": once it is loaded, outputs are only numbered. Keep the list"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        lost.append(
            "several classes have the same name, so other programs may take one for "
            f"the other: {shortened(repeated, plain)}"
        )
    return lost


def _reading(
    format: Format,
    architecture: ViTOrMixer,
    arrays: Mapping[str, np.ndarray],
    companions: Mapping[str, Any],
) -> Reading:
    specs = {name: Spec(x.shape, x.dtype) for name, x in arrays.items()}
    hints = Hints(
        config=companions.get("config.json", {}),
        preprocessor=companions.get("preprocessor_config.json", {}),
        num_heads=getattr(architecture, "num_heads", None),
        image_size=architecture.image_size,
        trained_image_size=architecture.image_size,
    )
    pieces = format.pieces(specs, hints)
    return format.read(piece_shapes(specs, pieces), hints)
