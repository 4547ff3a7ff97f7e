"""Finds an objective by its name in the config."""

from typing import Any

from vit_jax.config import without_effect
from vit_jax.errors import Problems, UserError, problems_of
from vit_jax.named import check_options, find_class
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.distillation import Distillation
from vit_jax.objectives.flexible import drawn_sizes
from vit_jax.objectives.linear_probe import LinearProbe
from vit_jax.objectives.masked_autoencoding import MaskedAutoencoding
from vit_jax.objectives.masked_patches import MaskedPatches
from vit_jax.objectives.protocol import OPTIONAL_KEYS, Given, Labels, Objective
from vit_jax.objectives.self_distillation import SelfDistillation

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "distillation": Distillation,
    "linear_probe": LinearProbe,
    "masked_autoencoding": MaskedAutoencoding,
    "masked_patches": MaskedPatches,
    "self_distillation": SelfDistillation,
}


def objective_class(name: str) -> type[Objective]:
    """Finds a class in `OBJECTIVES`, or the user's own by `package.module:Name`.

    Raises:
      UserError: there is no such row, module or class, or the module fails to import.
    """
    return find_class(name, OBJECTIVES, Objective, "objective")


def make_objective(given: Given) -> Objective:
    """Makes the objective that the config names, with `objective_options` as arguments.

    Raises:
      UserError: see `objective_class`; or the class does not take one of the options,
        refuses what they say, or does not read a key that the config sets.
    """
    config = given.config
    kind: Any = objective_class(config.objective)
    options = config.objective_options.to_dict()
    check_options(kind, options, 1, "objective_options")
    unread = [key for key in OPTIONAL_KEYS if key not in kind.reads]
    problems = without_effect(
        config, unread, f"the objective {config.objective} does not read it"
    )
    try:
        objective = kind(given, **options)
    except UserError as error:
        raise Problems(*problems, *problems_of(error)) from error
    if sizes := drawn_sizes(config):
        if not objective.flexible:
            others = ", ".join(name for name, one in OBJECTIVES.items() if one.flexible)
            problems.append(
                f"flexible.patch_sizes has no effect: the objective {config.objective} "
                "computes the model at one patch size; leave it out, or choose from "
                f"{others}"
            )
        objective.patch_sizes, objective.choices = sizes, sizes.choices
    labelled = any(isinstance(one, Labels) for one in objective.inputs.values())
    if labelled and not given.info.num_classes:
        problems.append(
            f"the objective {config.objective} learns from labels, but the images of "
            f"{given.info.name} have none; use data with labels, or an objective that "
            "needs none, such as masked_autoencoding"
        )
    if problems:
        raise Problems(*problems)
    return objective
