"""Schedule-free learning (arXiv:2405.15682): an average in place of a schedule's decay.

There are three points for each parameter: z, where the optimiser would be without
averaging; x, the average of all z; and y, between both, where gradients are computed:

    y = (1 − b1)·z + b1·x
    z ← z − rate·d(y)
    x ← (1 − c)·x + c·z,  c = w / (sum of all w so far),  w = t^r · (largest rate)^power

The run trains y, which is what the state holds as parameters; x is what is evaluated,
loaded and saved for use. The numbers are those of the package `schedulefree` 1.4.1.
optax.contrib.schedule_free differs in small ways: it has no t^r, and its weight decay
and Adam's second moments come from the optimiser that it wraps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.optim.groups import Group
from vit_jax.optim.rule import Option, RuleInputs
from vit_jax.trees import path_name

OPTIONS = {"r": Option(0.0), "weight_lr_power": Option(2.0)}


class ScheduleFreeState(NamedTuple):
    """The state of the averaging; x is not stored, because y and z determine it."""

    z: Any  # like the parameters
    count: Array  # int32 scalar: updates so far
    weights: Array  # float32 scalar: sum of the weights of all z so far
    max_rate: Array  # float32 scalar: largest learning rate so far


def rms(given: RuleInputs) -> optax.GradientTransformation:
    """Divides gradients by the root of their second moments: Adam without momentum."""
    config = given.config
    return optax.scale_by_rms(
        config.b2, config.eps, eps_in_sqrt=False, bias_correction=True
    )


def averaging(given: RuleInputs) -> optax.GradientTransformationExtraArgs:
    """Makes the step of y and z along a direction that weight decay is part of.

    Its `update` takes `rate`, the learning rate, and `step`. As y does not move in
    proportion to the rate, it returns (y − new y)/rate, which the training step
    multiplies by the rate again. An update whose rate is 0 changes nothing and has no
    weight in the average.
    """
    b1, r = given.config.b1, given.options["r"]
    power = given.options["weight_lr_power"]

    def init(params: Any) -> ScheduleFreeState:
        # Separate arrays: the step donates its state.
        return ScheduleFreeState(
            jax.tree.map(jnp.copy, params),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
            jnp.zeros(()),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ScheduleFreeState]:
        rate, count = extra["rate"], state.count + 1
        max_rate = jnp.maximum(state.max_rate, rate)
        weight = count.astype(jnp.float32) ** r * max_rate**power
        weight = jnp.where(rate > 0, weight, 0.0)
        weights = state.weights + weight
        c = weight / jnp.where(weights > 0, weights, 1.0)

        def own_rate(path: Any, _: Array) -> Array:
            return _rate_of(given.groups[path_name(path)], rate, extra["step"])

        def direction(d: Array, y: Array, z: Array, rate: Array) -> Array:
            moved = c * (y - z) / jnp.where(rate > 0, rate, 1.0)
            return jnp.where(rate > 0, moved + (1 - b1 * (1 - c)) * d, 0.0)

        rates = jax.tree.map_with_path(own_rate, updates)
        directions = jax.tree.map(direction, updates, params, state.z, rates)
        z = jax.tree.map(lambda z, rate, d: z - rate * d, state.z, rates, updates)
        return directions, ScheduleFreeState(z, count, weights, max_rate)

    return optax.GradientTransformationExtraArgs(init, update)


def _rate_of(group: Group, rate: Array, step: Array) -> Array:
    rate = rate * group.lr
    return jnp.where(step >= group.start, rate, 0.0) if group.start else rate


def averages_of(
    opt_state: Any, params: Any, b1: float, fetched: Callable[[Any], Any]
) -> Any:
    """Computes x, the parameters to use, from an optimiser's state.

    Parameters that are not trained schedule-free stay as they are.

    Args:
      opt_state: the optimiser's state, which may be anywhere inside of others'.
      params: all parameters of the run.
      b1: the config's.
      fetched: moves a tree like the parameters to the devices.
    """
    found = {
        path_name(path): z
        for state in _states(opt_state)
        for path, z in jax.tree.leaves_with_path(fetched(state.z))
    }

    def average(path: Any, y: Array) -> Array:
        z = found.get(path_name(path))
        return y if z is None else y + (z - y) * (1 - 1 / b1)

    return jax.tree.map_with_path(average, params)


def has_averages(opt_state: Any) -> bool:
    """Returns whether an optimiser's state, or its shapes, determine an average."""
    return bool(_states(opt_state))


def _states(opt_state: Any) -> list[ScheduleFreeState]:
    leaves = jax.tree.leaves(
        opt_state, is_leaf=lambda x: isinstance(x, ScheduleFreeState)
    )
    return [leaf for leaf in leaves if isinstance(leaf, ScheduleFreeState)]
