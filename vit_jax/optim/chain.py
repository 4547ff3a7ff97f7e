"""The optimiser chain, which turns gradients into directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config
from vit_jax.optim.groups import Groups, make_groups
from vit_jax.optim.guard import guarded, is_guarded

MOMENTUM_DTYPES = ("float32", "bfloat16")


def make_optimizer(
    config: Config, params: Any, groups: Groups | None = None
) -> optax.GradientTransformation:
    """Makes the optimiser: gradient clipping, AdamW, Adafactor or SGD, weight decay.

    Clipping is by global norm; SGD has momentum. The updates are directions: the step
    multiplies them by −(learning rate), so the decay is decoupled and scaled by the
    learning rate, as in optax.adamw. Bad updates are skipped if the config asks for it;
    see `guarded`. The optimiser takes only the parameters that are trained, not the
    frozen ones.

    Args:
      config: a resolved config.
      params: all parameters or their shapes.
      groups: how each parameter is trained; by default, as the config says.

    Raises:
      UserError: see `make_groups`.
    """
    groups = groups or make_groups(config, params, OPTIMIZERS)
    trained = groups.trained(params)
    dtype = jnp.dtype(config.momentum_dtype)
    core = OPTIMIZERS[config.optimizer](config, dtype)
    if rules := groups.values("rule") - {""}:
        choices = {rule: OPTIMIZERS[rule](config, dtype) for rule in sorted(rules)}
        labels = groups.of("rule", trained)
        core = optax.partition({"": core, **choices}, labels)
    chain = [core]
    if config.grad_clip_norm:
        # First in the chain: the norm is that of the raw gradients, before any scaling.
        chain.insert(0, optax.clip_by_global_norm(config.grad_clip_norm))
    decays = groups.of("decay", trained)
    for decay in sorted(groups.values("decay") - {0.0}):
        mask = jax.tree.map(lambda x, decay=decay: x == decay, decays)
        chain.append(optax.add_decayed_weights(decay, mask))
    optimizer = optax.chain(*chain)
    return guarded(optimizer, config) if is_guarded(config) else optimizer


def _adafactor(cap: float, momentum: float, dtype: Any) -> optax.GradientTransformation:
    """Makes Adafactor with the changes of arXiv:2106.04560, §3.4.

    The paper is "Scaling Vision Transformers". For a matrix, only the row and column
    means of the second moments are kept. They decay by min(cap, 1 − t^−0.8) at update
    t = 1, 2, …. Updates are neither clipped per block nor scaled by the parameters, and
    the first moment is a plain average.
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


# Name → (config, dtype of the momentum) → transformation of gradients into directions.
OPTIMIZERS: dict[str, Callable[[Config, Any], optax.GradientTransformation]] = {
    "adamw": lambda config, dtype: optax.scale_by_adam(
        config.b1, config.b2, mu_dtype=dtype
    ),
    "adafactor": lambda config, dtype: _adafactor(config.b2, config.momentum, dtype),
    "sgd": lambda config, dtype: optax.trace(config.momentum, accumulator_dtype=dtype),
}
