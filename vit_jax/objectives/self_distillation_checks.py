"""Checks of the options of self-distillation."""

import math
from collections.abc import Mapping

from vit_jax.config.flexible import not_dividing
from vit_jax.models.architecture import Architecture
from vit_jax.objectives.flexible import drawn_sizes
from vit_jax.objectives.multi_crop import MultiCrop
from vit_jax.objectives.protocol import Given
from vit_jax.words import times

_WARMUP = "warmup_teacher_temp_epochs"


def wrong_options(
    given: Given,
    *,
    sizes: Mapping[str, int],
    temperatures: Mapping[str, float],
    momenta: Mapping[str, float],
    epochs: Mapping[str, int],
) -> list[str]:
    """Lists all options that are impossible, and what the run may not have.

    Args:
      given: the run.
      sizes: numbers of outputs, hidden units, layers, by the name of their option.
      temperatures: numbers above 0.
      momenta: numbers from 0 to 1.
      epochs: numbers of epochs within the run.
    """
    found = [
        *_wrong_sizes(sizes),
        *_wrong_numbers(temperatures, math.inf, "a number above 0"),
        *_wrong_numbers(momenta, 1.0, "a number from 0 to 1"),
        *_wrong_epochs(given, epochs),
    ]
    return _wrong_config(given) + [f"objective_options.{line}" for line in found]


def wrong_patch_sizes(given: Given, crops: MultiCrop) -> list[str]:
    """Names views that cannot be cut into all of the patch sizes that steps draw."""
    sizes = drawn_sizes(given.config)
    if sizes is None or not crops.small:
        return []
    # The large views have the size of the images, which is checked with the config.
    view = crops.inputs[crops.small[0]].transform.image_size
    if lines := not_dividing(sizes.sizes, view):
        return [
            f"flexible.patch_sizes: small views of {times(view)} pixels cannot be cut "
            f"into patches of {', '.join(lines)}; set objective_options."
            "local_crops_size to a multiple of all sizes"
        ]
    return []


def first_step(given: Given, epoch: int) -> int:
    """Returns the number of the first step that begins in an epoch, counted from 0."""
    return -(-epoch * _examples(given) // given.config.batch_size)


def _examples(given: Given) -> int:
    """Returns the number of training images; 0 if the data cannot be opened."""
    return given.info.num_examples.get(given.info.train_split, 0)


def _wrong_config(given: Given) -> list[str]:
    """Lists what the model and the rest of the config must be like."""
    architecture, found = given.architecture, []
    if not isinstance(architecture, Architecture):
        kind = type(architecture).__name__.removesuffix("Architecture")
        found.append(
            "self-distillation needs a Vision Transformer, which takes views of two "
            f"sizes; found {kind}"
        )
    elif architecture.trunk is not None:
        found.append(
            "self-distillation here has no hybrids: with a ResNet in front of the "
            "patches it is another method; use a variant without R50"
        )
    if given.config.ema_decay:
        found.append(
            f"ema_decay={given.config.ema_decay}: the teacher of self-distillation is "
            "the averaged model already; set it to 0"
        )
    return found


def _wrong_sizes(sizes: Mapping[str, int]) -> list[str]:
    limits = {"out_dim": (2, math.inf), "nlayers": (1, 9)}
    found = []
    for name, value in sizes.items():
        least, most = limits.get(name, (1, math.inf))
        if not least <= value <= most:
            bounds = f"from {least} to {most}" if most < math.inf else f"from {least}"
            found.append(f"{name}={value!r}: give a whole number {bounds}")
    return found


def _wrong_numbers(numbers: Mapping[str, float], most: float, wanted: str) -> list[str]:
    """Lists numbers below 0 or above `most`; without an upper limit, also 0."""
    return [
        f"{name}={value!r}: give {wanted}"
        for name, value in numbers.items()
        if not (0 <= value <= most if most < math.inf else value > 0)
    ]


def _wrong_epochs(given: Given, lengths: Mapping[str, int]) -> list[str]:
    """Lists numbers of epochs that do not fit into the run."""
    found, steps, examples = [], given.config.total_steps, _examples(given)
    for name, epochs in lengths.items():
        if epochs < 0:
            found.append(f"{name}={epochs!r}: give a number of epochs, 0 or more")
            continue
        # The last epoch of the warm-up already has its final temperature.
        reached = epochs - (name == _WARMUP)
        known = epochs and steps and examples
        if known and first_step(given, reached) >= steps:
            length = steps * given.config.batch_size / examples
            found.append(
                f"{name}={epochs}: the run ends before, after {length:.3g} epochs "
                f"({steps} steps of {given.config.batch_size} images, of {examples}); "
                "give fewer epochs, or train longer"
            )
    return found
