"""Learning-rate schedules and the optimiser chain."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.optim.guard import guarded, is_guarded

# Each maps (updates since the warm-up, length of what follows the warm-up, config) to
# a learning rate.
SCHEDULES: dict[str, Callable[[Array, int, Config], Array]] = {
    "constant": lambda t, length, config: jnp.full_like(t, config.learning_rate),
    "linear": lambda t, length, config: (
        config.end_learning_rate
        + (config.learning_rate - config.end_learning_rate) * (1 - t / length)
    ),
    "cosine": lambda t, length, config: (
        config.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t / length))
    ),
    "rsqrt": lambda t, length, config: (
        config.learning_rate / jnp.sqrt(1 + t / config.rsqrt_timescale)
    ),
}


def make_schedule(config: Config) -> Callable[[Any], Array]:
    """The learning rate as a function of the number of finished updates.

    The first update uses t = 0. A linear warm-up multiplies the decay; with
    `cooldown_steps` the last steps go linearly to 0. Linear and cosine follow the ViT
    paper (appendix B.1), the inverse square root "Scaling Vision Transformers" (§3.5).
    """
    warmup, total = config.warmup_steps, config.total_steps
    cooldown, decay = config.cooldown_steps, SCHEDULES[config.schedule]
    length = max(total - warmup, 1)

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rate = decay(jnp.clip(step - warmup, 0, length), length, config)
        if warmup:
            rate *= jnp.minimum(step / warmup, 1.0)
        if cooldown:
            rate *= jnp.clip((total - step) / cooldown, 0.0, 1.0)
        return rate

    return schedule


def make_optimizer(config: Config, params: Any) -> optax.GradientTransformation:
    """Clipping by global norm; AdamW, Adafactor or SGD with momentum; weight decay.

    Its updates are directions: the step multiplies them by −(learning rate), so the
    decay is decoupled and scaled by the learning rate, as in optax.adamw. Where the
    config asks for it, bad updates are left out; see `guarded`.

    Args:
      config: a resolved config.
      params: the parameters or their shapes; decides which of them decay.

    Raises:
      UserError: there is weight decay, but no parameter that it applies to.
    """
    chain = [OPTIMIZERS[config.optimizer](config, jnp.dtype(config.momentum_dtype))]
    if config.grad_clip_norm:
        # On the raw gradients, before any scaling.
        chain.insert(0, optax.clip_by_global_norm(config.grad_clip_norm))
    if config.weight_decay:
        mask = decay_mask(params, config.weight_decay_on)
        if not any(jax.tree.leaves(mask)):
            example = path_name(jax.tree.leaves_with_path(params)[0][0])
            raise UserError(
                f"weight_decay={config.weight_decay}, but "
                f"weight_decay_on={config.weight_decay_on!r} matches no parameter; "
                f"their paths look like {example!r}"
            )
        chain.append(optax.add_decayed_weights(config.weight_decay, mask))
    optimizer = optax.chain(*chain)
    return guarded(optimizer, config) if is_guarded(config) else optimizer


def _adafactor(cap: float, momentum: float, dtype: Any) -> optax.GradientTransformation:
    """Adafactor as "Scaling Vision Transformers" (arXiv:2106.04560, §3.4) modifies it.

    Of the second moments of a matrix only the means of rows and columns are kept. Their
    decay is min(cap, 1 − t^−0.8) at update t = 1, 2, …; there is no clipping by block
    and no scaling by the parameters, and the first moment is a plain average.
    """

    def decay(step: Any, exponent: Any) -> Array:
        return jnp.minimum(cap, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -exponent)

    chain = [
        optax.scale_by_factored_rms(
            decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=decay
        )
    ]
    if momentum:
        chain.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype))
    return optax.chain(*chain)


# Each makes of a config and the momentum's dtype what turns gradients into directions.
OPTIMIZERS: dict[str, Callable[[Config, Any], optax.GradientTransformation]] = {
    "adamw": lambda config, dtype: optax.scale_by_adam(
        config.b1, config.b2, mu_dtype=dtype
    ),
    "adafactor": lambda config, dtype: _adafactor(config.b2, config.momentum, dtype),
    "sgd": lambda config, dtype: optax.trace(config.momentum, accumulator_dtype=dtype),
}


def decay_mask(params: Any, pattern: str) -> Any:
    """A tree like `params`: True where the whole path ("norm/scale") matches."""
    regex = re.compile(pattern)
    return jax.tree.map_with_path(
        lambda path, _: regex.fullmatch(path_name(path)) is not None, params
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as text: "blocks_00/mlp/fc1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
