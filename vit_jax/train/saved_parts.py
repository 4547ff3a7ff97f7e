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
    OBJECTIVE,
    OPTIMIZER,
    OPTIMIZER_AVERAGES,
    PARAMS,
)
from vit_jax.models.adapters import overlaid
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState, to_items

# Parts that are not trees of the parameters, and so are saved whole.
_OTHERS = (OPTIMIZER, OBJECTIVE)


def checkpoint_items(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Splits a state into the parts that a checkpoint holds, by name.

    To those that a run restores it adds what the optimiser's own averaging makes of the
    parameters.
    """
    items = restored_items(setup, state)
    if (averages := setup.optimizer_averages(state)) is not None:
        items[OPTIMIZER_AVERAGES] = setup.saved(averages)
    return items


def restored_items(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Splits a state, or its shapes, into the parts that a run restores, by name."""
    return {
        name: _each(name, tree, setup.saved) for name, tree in to_items(state).items()
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
    if name in _OTHERS:
        return tree
    if name == AVERAGES:
        return {key: change(average) for key, average in tree.items()}
    return change(tree)
