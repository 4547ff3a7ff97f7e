"""Finds an objective by its name in the config."""

from typing import Any

from vit_jax.named import check_options, find_class
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.masked_autoencoding import MaskedAutoencoding
from vit_jax.objectives.protocol import Given, Objective
from vit_jax.objectives.self_distillation import SelfDistillation

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "masked_autoencoding": MaskedAutoencoding,
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
      UserError: see `objective_class`; or the class does not take one of the options.
    """
    kind: Any = objective_class(given.config.objective)
    options = given.config.objective_options.to_dict()
    check_options(kind, options, 1, "objective_options")
    return kind(given, **options)
