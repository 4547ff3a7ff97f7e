"""Schedules of the learning rate and of weight decay."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vit_jax.config import Config

# Each maps (updates since the warm-up, number of updates after the warm-up, config) to
# a learning rate.
SCHEDULES: dict[str, Callable[[Array, int, Config], Array]] = {
    "constant": lambda t, length, config: jnp.full_like(t, config.learning_rate),
    "linear": lambda t, length, config: (
        config.end_learning_rate
        + (config.learning_rate - config.end_learning_rate) * (1 - t / length)
    ),
    "cosine": lambda t, length, config: (
        config.min_learning_rate
        + (config.learning_rate - config.min_learning_rate)
        * 0.5
        * (1 + jnp.cos(jnp.pi * t / length))
    ),
    "rsqrt": lambda t, length, config: (
        config.learning_rate / jnp.sqrt(1 + t / config.rsqrt_timescale)
    ),
}


# Schedules that do not depend on the length of a run, but for its cooldown.
_OPEN_ENDED = ("constant", "rsqrt")


def cooldown_start(config: Config) -> int | None:
    """Returns the step from which a run can become longer although it has cooled down.

    That is the number of updates before the cooldown. None if there is none, or if the
    steps before it also depend on the length of the run.
    """
    open_ended = config.schedule in _OPEN_ENDED and config.weight_decay_end is None
    if not (open_ended and 0 < config.cooldown_steps < config.total_steps):
        return None
    return config.total_steps - config.cooldown_steps


def make_schedule(config: Config) -> Callable[[Any], Array]:
    """Makes the learning rate as a function of the number of finished updates.

    The first update uses t = 0. The warm-up is linear from `warmup_learning_rate`; with
    `cooldown_steps`, the last steps decay linearly to 0. Linear and cosine follow the
    ViT paper (appendix B.1), the inverse square root follows "Scaling Vision
    Transformers" (§3.5).
    """
    warmup, total = config.warmup_steps, config.total_steps
    cooldown, decay = config.cooldown_steps, SCHEDULES[config.schedule]
    length, first = max(total - warmup, 1), config.warmup_learning_rate

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rate = decay(jnp.clip(step - warmup, 0, length), length, config)
        if warmup and first:
            warming = first + (config.learning_rate - first) * step / warmup
            rate = jnp.where(step < warmup, warming, rate)
        elif warmup:
            rate *= jnp.minimum(step / warmup, 1.0)
        if cooldown:
            rate *= jnp.clip((total - step) / cooldown, 0.0, 1.0)
        return rate

    return schedule


def make_decay_factor(config: Config) -> Callable[[Any], Array] | None:
    """Makes the factor of all weight decay as a function of the finished updates.

    It runs from 1 to `weight_decay_end` / `weight_decay` along half a cosine, as in
    DINO (arXiv:2104.14294, §3.2). Returns None if weight decay is constant.
    """
    if config.weight_decay_end is None:
        return None
    total, end = config.total_steps, config.weight_decay_end / config.weight_decay

    def factor(step: Any) -> Array:
        progress = jnp.asarray(step, jnp.float32) / total
        return end + 0.5 * (1 - end) * (1 + jnp.cos(jnp.pi * progress))

    return factor
