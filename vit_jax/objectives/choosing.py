"""Finds an objective by its name in the config."""

from typing import Any

from vit_jax.named import check_options, find_class
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.protocol import Given, Objective

OBJECTIVES: dict[str, type[Objective]] = {"classification": Classification}


def objective_class(name: str) -> type[Objective]:
    """The class of a row of `OBJECTIVES`, or of the user's own `package.module:Name`.

    Raises:
      UserError: no such row, module or class, or the module fails to import.
    """
    return find_class(name, OBJECTIVES, Objective, "objective")


def make_objective(given: Given) -> Objective:
    """The objective that the config names, with `objective_options` as arguments.

    Raises:
      UserError: see `objective_class`; or an option that the class does not take.
    """
    kind: Any = objective_class(given.config.objective)
    options = given.config.objective_options.to_dict()
    check_options(kind, options, 1, "objective_options")
    return kind(given, **options)
