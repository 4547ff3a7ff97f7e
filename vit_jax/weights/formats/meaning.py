"""The meaning of a foreign model's outputs: the companion file's word, or the usual."""

from collections.abc import Mapping
from typing import Any

from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT, NUMBERS, readable
from vit_jax.weights.formats.companion import TEXT, entry
from vit_jax.words import quoted

# Values of `problem_type` in a config.json. It belongs to every model of transformers,
# which also reads it from the config.json of a timm model; timm itself ignores it.
_PROBLEM_TYPES = {
    "single_label_classification": EXCLUSIVE,
    "multi_label_classification": INDEPENDENT,
    "regression": NUMBERS,
}
# Heads of Google's models over ImageNet-21k, whose images have several labels: trained
# with a sigmoid. Other data sets of that name have other numbers of classes.
_IMAGENET21K_CLASSES = 21_843


def usual_outputs(num_classes: int) -> str:
    """Returns the meaning of a head's outputs where no file records it."""
    several = num_classes == _IMAGENET21K_CLASSES
    return readable(INDEPENDENT if several else EXCLUSIVE, num_classes)


def read_outputs(
    config: Mapping[str, Any], num_classes: int
) -> tuple[str, tuple[str, ...]]:
    """Reads the meaning of the outputs from config.json; also lists assumptions."""
    told = entry(config, "problem_type", TEXT, "")
    usual = usual_outputs(num_classes)
    if not told:
        return usual, ()
    for name, outputs in _PROBLEM_TYPES.items():
        if name.startswith(told):  # also "multi_label"
            return readable(outputs, num_classes), ()
    return usual, (
        f"config.json says problem_type {quoted(told)}, which transformers does not "
        f"know: assumed outputs={usual!r}",
    )


def written_outputs(outputs: str, num_classes: int) -> dict[str, str]:
    """Makes the entry of config.json for the meaning of the outputs.

    There is none without a head, and none for classes that exclude each other, which
    transformers assumes and does not write either.
    """
    if not num_classes or outputs == usual_outputs(num_classes) == EXCLUSIVE:
        return {}
    [name] = [name for name, meaning in _PROBLEM_TYPES.items() if meaning == outputs]
    return {"problem_type": name}
