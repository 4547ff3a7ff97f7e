"""A guard that skips bad updates: a loss or gradient not finite, or a loss spike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config

BAD_UPDATES = ("stop", "skip")
_WINDOW = 100  # good updates in the mean loss; with fewer, no spike is detected


class GuardState(NamedTuple):
    """The state of a guarded optimiser, saved in checkpoints as part of its state."""

    inner: Any  # state of the optimiser itself
    skipped: Array  # int32 scalar: updates skipped so far
    applied: Array  # int32 scalar: updates applied so far
    mean_loss: Array  # float32 scalar: running mean over the applied updates


def guarded(
    optimizer: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser so that bad updates are zero and leave its state unchanged.

    An update is bad if `loss`, an additional argument of `update`, or the gradients'
    norm is not finite; or if the loss is more than `max_loss_spike` times its running
    mean over the last 100 good updates, once there have been that many.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        # Separate arrays: the step donates its state, and no buffer may be donated
        # twice.
        zeros = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()))
        return GuardState(optimizer.init(params), *zeros)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, GuardState]:
        loss = extra["loss"]
        directions, inner = optimizer.update(updates, state.inner, params, **extra)
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
    """Whether the config asks for a guard; if not, the step contains none of it."""
    return config.bad_update == "skip" or config.max_loss_spike > 0


def skipped_updates(opt_state: Any) -> Array | None:
    """Returns the number of updates skipped so far; None without a guard."""
    return opt_state.skipped if isinstance(opt_state, GuardState) else None
