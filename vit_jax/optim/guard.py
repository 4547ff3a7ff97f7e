"""Updates that would do harm are left out: loss or gradient not finite, or a spike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config

BAD_UPDATES = ("stop", "skip")
_WINDOW = 100  # good updates that the mean loss is over, and that it takes to judge


class GuardState(NamedTuple):
    """What a guarded optimiser keeps; it is saved with the rest of its state."""

    inner: Any  # of the optimiser itself
    skipped: Array  # int32 scalar: updates so far that were left out
    applied: Array  # int32 scalar: all others
    mean_loss: Array  # float32 scalar: running mean over these


def guarded(
    optimizer: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
    """An optimiser whose bad updates are zero and leave its state as it was.

    Bad is an update when `loss`, which `update` takes besides, or the gradients' norm
    is not finite; or when the loss is more than `max_loss_spike` times its running mean
    over the last 100 good updates, once there were as many.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        # No two alike: the step donates its state, and one cannot be given away twice.
        zeros = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()))
        return GuardState(optimizer.init(params), *zeros)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, GuardState]:
        loss = extra["loss"]
        directions, inner = optimizer.update(updates, state.inner, params)
        good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        if config.max_loss_spike:
            spike = loss > config.max_loss_spike * state.mean_loss
            good &= ~(spike & (state.applied >= _WINDOW))
        applied = state.applied + good
        mean = state.mean_loss
        mean += (loss - mean) / jnp.minimum(applied, _WINDOW)

        def chosen(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)

        directions = jax.tree.map(lambda x: jnp.where(good, x, 0), directions)
        return directions, GuardState(
            chosen(inner, state.inner),
            state.skipped + ~good,
            applied,
            chosen(mean, state.mean_loss),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_guarded(config: Config) -> bool:
    """Whether the config asks for it; without, nothing of it is in the step."""
    return config.bad_update == "skip" or config.max_loss_spike > 0


def skipped_updates(opt_state: Any) -> Array | None:
    """How many were left out so far; None where nothing is guarded."""
    return opt_state.skipped if isinstance(opt_state, GuardState) else None
