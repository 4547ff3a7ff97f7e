"""The parts of a training state that checkpoints hold.

Parameters that stay at their pretrained values can be read from the weights again, so a
run may leave them out of its checkpoints (`config.save_frozen`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.checkpoints.parts import (
    AVERAGES,
    EMA,
    OPTIMIZER_AVERAGES,
    PARAMS,
)
from vit_jax.config import Config
from vit_jax.models import abstract_params
from vit_jax.models.adapters import adapters_of, is_head
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState, to_items
from vit_jax.trees import chosen, overlaid

# Parts that are trees of all parameters; others are saved whole.
_OF_PARAMETERS = (PARAMS, EMA)


def may_leave_out_frozen(config: Config) -> bool:
    """Returns whether a run's checkpoints may lack the frozen parameters."""
    adapters = config.lora.rank or config.prompts.count
    return config.save_frozen == "no" or (
        config.save_frozen == "auto" and bool(adapters)
    )


def saves_frozen(setup: Setup) -> bool:
    """Returns whether a run's checkpoints hold the frozen parameters too."""
    if setup.config.save_frozen == "auto":
        return not adapters_of(setup.architecture)
    return setup.config.save_frozen == "yes"


def saved_params(setup: Setup, params: Any) -> Any:
    """Returns a tree of parameters without those that checkpoints leave out.

    These are the model's frozen ones, outside of the head.
    """
    if saves_frozen(setup):
        return params
    model = abstract_params(setup.architecture)
    groups = setup.groups.by_path

    def kept(path: str) -> bool:
        beside = path.partition("/")[0] not in model
        return beside or is_head(path) or not groups[path].frozen

    return chosen(params, kept)


def checkpoint_items(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Splits a state into the parts that a checkpoint holds, by name.

    To those that a run restores it adds what the optimiser's own averaging makes of the
    parameters.
    """
    items = restored_items(setup, state)
    if (averages := setup.optimizer_averages(state)) is not None:
        items[OPTIMIZER_AVERAGES] = saved_params(setup, averages)
    return items


def restored_items(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Splits a state, or its shapes, into the parts that a run restores, by name."""
    return {
        name: _each(name, tree, functools.partial(saved_params, setup))
        for name, tree in to_items(state).items()
    }


def with_frozen(items: Mapping[str, Any], first: Any) -> dict[str, Any]:
    """Adds the parameters that `restored_items` left out.

    Args:
      items: the parts of a checkpoint.
      first: the parameters before the first step, on their devices.
    """

    def whole(name: str, tree: Any) -> Any:
        # Copied, because the step donates its state, and no array may be donated twice.
        frozen = first if name == PARAMS else jax.tree.map(jnp.copy, first)
        return overlaid(tree, frozen)

    return {
        name: _each(name, tree, functools.partial(whole, name))
        for name, tree in items.items()
    }


def _each(name: str, tree: Any, change: Callable[[Any], Any]) -> Any:
    """Applies a function to a part's trees of parameters, if there are any in it."""
    if name == AVERAGES:
        return {key: change(average) for key, average in tree.items()}
    return change(tree) if name in _OF_PARAMETERS else tree
