"""The parts of a training state that checkpoints hold.

Parameters that stay at their pretrained values can be read from the weights again, so a
run may leave them out of its checkpoints (`config.save_frozen`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.checkpoints.parts import OBJECTIVE, OPTIMIZER, PARAMS
from vit_jax.models.adapters import overlaid
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState, to_items

# Parts that are not trees of the parameters, and so are saved whole.
_OTHERS = (OPTIMIZER, OBJECTIVE)


def saved_items(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Splits a state into the parts that a checkpoint holds, by name."""
    return {
        name: tree if name in _OTHERS else setup.saved(tree)
        for name, tree in to_items(state).items()
    }


def with_frozen(items: Mapping[str, Any], first: Any) -> dict[str, Any]:
    """Adds the parameters that `saved_items` left out.

    Args:
      items: the parts of a checkpoint.
      first: the parameters before the first step, on their devices.
    """

    def whole(name: str, tree: Any) -> Any:
        # Copied, because the step donates its state, and no array may be donated twice.
        frozen = first if name == PARAMS else jax.tree.map(jnp.copy, first)
        return overlaid(tree, frozen)

    return {
        name: tree if name in _OTHERS else whole(name, tree)
        for name, tree in items.items()
    }
