"""The optimisers' rules: how gradients become directions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.config import Config
from vit_jax.optim.units import scale_by_unit_trust_ratio

_LARS_COEFFICIENT = 0.001


class Rule(NamedTuple):
    """One optimiser, in the two parts of it that weight decay comes between.

    Attributes:
      before: (config, dtype of the momentum) → the transformation of gradients.
      after: (config, dtype of the momentum, path → its weight decay) → the
        transformation of the result with its decay; None = there is nothing to do.
    """

    before: Callable[[Config, Any], optax.GradientTransformation]
    after: (
        Callable[[Config, Any, Mapping[str, float]], optax.GradientTransformation]
        | None
    ) = None


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


def _adam(config: Config, dtype: Any) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)


def _lamb_ratio(
    config: Config, dtype: Any, decays: Mapping[str, float]
) -> optax.GradientTransformation:
    """Makes LAMB's layer-wise adaptation, for the parameters that decay (apex, timm).

    Adam's direction plus the decay takes on the norm of the parameters (arXiv:
    1904.00962). Biases, norms and embeddings, which do not decay, are left to Adam.
    """
    del config, dtype
    return scale_by_unit_trust_ratio(1.0, lambda path, _: decays[path] > 0)


def _lars_momentum(
    config: Config, dtype: Any, decays: Mapping[str, float]
) -> optax.GradientTransformation:
    """Makes the layer-wise adaptation of LARS for matrices, and then its momentum.

    This is LARS of MoCo v3 and MAE's linear probe. The momentum knows no learning rate,
    unlike that of optax.lars, so both differ while the rate changes.
    """
    del decays
    return optax.chain(
        scale_by_unit_trust_ratio(_LARS_COEFFICIENT, lambda _, update: update.ndim > 1),
        optax.trace(config.momentum, accumulator_dtype=dtype),
    )


OPTIMIZERS: dict[str, Rule] = {
    "adamw": Rule(_adam),
    "adafactor": Rule(
        lambda config, dtype: _adafactor(config.b2, config.momentum, dtype)
    ),
    "sgd": Rule(
        lambda config, dtype: optax.trace(config.momentum, accumulator_dtype=dtype)
    ),
    "lamb": Rule(_adam, _lamb_ratio),
    "lars": Rule(lambda config, dtype: optax.identity(), _lars_momentum),
}
