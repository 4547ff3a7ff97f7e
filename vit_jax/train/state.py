"""The training state, which a step reads and writes, and its parts in a checkpoint.

This is the only place that knows all parts. A checkpoint keeps each of them under its
own name (`to_items`); parts without arrays are left out, so a run that does not use a
part writes the same checkpoints as before the part existed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.checkpoints.parts import (
    AVERAGES,
    EMA,
    OBJECTIVE,
    OPTIMIZER,
    PARAMS,
    average_key,
)


class TrainState(NamedTuple):
    """Everything that changes from step to step; random keys derive from `step`."""

    step: Array  # int32 scalar: finished updates, also the number of batches consumed
    params: Any  # trained and frozen parameters
    opt_state: Any
    bad_images: Array  # int32 scalar: unreadable training images so far
    ema: Any = None  # averages of params; None without `ema_decay`
    objective: Any = ()  # the objective's state: a centre, a teacher
    averages: Any = None  # further averages by `average_key`; None without `ema_decays`


def new_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    trained: Callable[[Any], Any],
    decays: Sequence[float],
    objective_state: Callable[[Any], Any],
) -> TrainState:
    """Makes the state before the first step.

    Args:
      params: parameters of the model and whatever else is trained.
      optimizer: makes its state from the trained parameters.
      trained: selects the trained parameters.
      decays: those of the moving averages of the parameters, first that of `ema`.
      objective_state: makes the objective's state from the parameters.
    """
    # Two arrays: the step donates its state, and no array may be donated twice.
    step, bad_images = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(trained(params))
    # Copied for the same reason.
    ema, averages = (jax.tree.map(jnp.copy, params) if decays else None), None
    if decays[1:]:
        averages = {
            average_key(decay): jax.tree.map(jnp.copy, params) for decay in decays[1:]
        }
    kept = objective_state(jax.tree.map(jnp.copy, params))
    return TrainState(step, params, opt_state, bad_images, ema, kept, averages)


def to_items(state: TrainState) -> dict[str, Any]:
    """Splits a state into parts, by their names in a checkpoint."""
    items = {
        PARAMS: state.params,
        OPTIMIZER: (state.opt_state, state.bad_images),
        EMA: state.ema,
        AVERAGES: state.averages,
        OBJECTIVE: state.objective,
    }
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def from_items(items: Mapping[str, Any], step: int, like: TrainState) -> TrainState:
    """Rebuilds a state from the parts that `to_items` returned.

    Args:
      items: parts of a checkpoint.
      step: the checkpoint's number.
      like: the state's shapes and shardings; provides the parts without arrays.
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
        items.get(AVERAGES, like.averages),
    )
