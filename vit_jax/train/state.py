"""The training state: what a step reads and writes, and where its parts are saved.

This is the one place that knows all parts. A checkpoint keeps each of them under a name
of its own (`to_items`); parts without arrays are left out, so a run that does not use
one writes the same checkpoints as before the part existed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.checkpoints.parts import EMA, OBJECTIVE, OPTIMIZER, PARAMS


class TrainState(NamedTuple):
    """Everything that changes from step to step. Random keys derive from `step`."""

    step: Array  # int32 scalar: finished updates, which is also batches consumed
    params: Any  # all that is trained, and what a parameter group has frozen
    opt_state: Any
    bad_images: Array  # int32 scalar: training images so far that could not be read
    ema: Any = None  # averages of params; None without `ema_decay`
    objective: Any = ()  # the objective's own: a centre, a teacher


def new_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    averaged: bool,
    objective_state: Callable[[Any], Any],
) -> TrainState:
    """The state before the first step.

    Args:
      params: of the model and whatever else is trained.
      optimizer: makes its own state from them.
      averaged: whether there is a moving average of the parameters.
      objective_state: makes the objective's own state from them.
    """
    # Two arrays: the step donates its state, and an array cannot be donated twice.
    step, bad_images = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    # Copies, for the same reason.
    ema = jax.tree.map(jnp.copy, params) if averaged else None
    kept = objective_state(jax.tree.map(jnp.copy, params))
    return TrainState(step, params, optimizer.init(params), bad_images, ema, kept)


def to_items(state: TrainState) -> dict[str, Any]:
    """The parts of a state by the names that a checkpoint keeps them under."""
    items = {
        PARAMS: state.params,
        OPTIMIZER: (state.opt_state, state.bad_images),
        EMA: state.ema,
        OBJECTIVE: state.objective,
    }
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def from_items(items: Mapping[str, Any], step: int, like: TrainState) -> TrainState:
    """The state that `to_items` took apart.

    Args:
      items: parts of a checkpoint.
      step: the checkpoint's number.
      like: the state's shapes and shardings; gives the parts without arrays.
    """
    opt_state, bad_images = items[OPTIMIZER]
    count = jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding)
    return TrainState(
        count,
        items[PARAMS],
        opt_state,
        bad_images,
        items.get(EMA, like.ema),
        items.get(OBJECTIVE, like.objective),
    )
