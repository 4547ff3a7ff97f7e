"""The optimisers' rules: how gradients become directions."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from vit_jax.optim import muon, schedule_free
from vit_jax.optim.rule import Option, Rule, RuleInputs
from vit_jax.optim.units import scale_by_unit_trust_ratio

_LARS_COEFFICIENT = 0.001


def _adafactor(given: RuleInputs) -> optax.GradientTransformation:
    """Makes Adafactor with the changes of arXiv:2106.04560, §3.4.

    The paper is "Scaling Vision Transformers". For a matrix, only the row and column
    means of the second moments are kept. They decay by min(cap, 1 − t^−0.8) at update
    t = 1, 2, …. Updates are neither clipped per block nor scaled by the parameters, and
    the first moment is a plain average.
    """
    cap, momentum = given.config.b2, given.config.momentum

    def decay(step: Any, exponent: Any) -> Array:
        return jnp.minimum(cap, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -exponent)

    chain = [
        optax.scale_by_factored_rms(
            decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=decay
        )
    ]
    if momentum:
        chain.append(optax.ema(momentum, debias=False, accumulator_dtype=given.dtype))
    return optax.chain(*chain)


def _adam(given: RuleInputs) -> optax.GradientTransformation:
    config = given.config
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=given.dtype)


def _lion(given: RuleInputs) -> optax.GradientTransformation:
    b1, b2 = given.options["b1"], given.options["b2"]
    return optax.scale_by_lion(b1, b2, mu_dtype=given.dtype)


def _momentum(given: RuleInputs) -> optax.GradientTransformation:
    return optax.trace(given.config.momentum, accumulator_dtype=given.dtype)


def _lamb_ratio(given: RuleInputs) -> optax.GradientTransformation:
    """Makes LAMB's layer-wise adaptation, for the parameters that decay (apex, timm).

    Adam's direction plus the decay takes on the norm of the parameters (arXiv:
    1904.00962). Biases, norms and embeddings, which do not decay, are left to Adam.
    """
    return scale_by_unit_trust_ratio(1.0, lambda path, _: given.groups[path].decay > 0)


def _lars_momentum(given: RuleInputs) -> optax.GradientTransformation:
    """Makes the layer-wise adaptation of LARS for matrices, and then its momentum.

    This is LARS of MoCo v3 and MAE's linear probe. The momentum knows no learning rate,
    unlike that of optax.lars, so both differ while the rate changes.
    """
    return optax.chain(
        scale_by_unit_trust_ratio(_LARS_COEFFICIENT, lambda _, update: update.ndim > 1),
        _momentum(given),
    )


_ADAM = ("b1", "b2", "eps")
_DTYPE = "momentum_dtype"

OPTIMIZERS: dict[str, Rule] = {
    "adamw": Rule(_adam, "arXiv:1711.05101", (*_ADAM, _DTYPE)),
    "adafactor": Rule(_adafactor, "arXiv:2106.04560", ("b2", "momentum", _DTYPE)),
    "sgd": Rule(_momentum, "", ("momentum", _DTYPE)),
    "lamb": Rule(
        _adam,
        "arXiv:1904.00962",
        (*_ADAM, _DTYPE),
        after=_lamb_ratio,
        decay_in_norms=True,
    ),
    "lars": Rule(
        lambda given: optax.identity(),
        "arXiv:1708.03888",
        ("momentum", _DTYPE),
        after=_lars_momentum,
        decay_in_norms=True,
    ),
    # Its b1 and b2 are options, because the config's are by default those of Adam.
    "lion": Rule(
        _lion,
        "arXiv:2302.06675",
        (_DTYPE,),
        {"b1": Option(0.9, 0.0, 0.999999), "b2": Option(0.99, 0.0, 0.999999)},
    ),
    "muon": Rule(
        muon.muon,
        "https://kellerjordan.github.io/posts/muon, arXiv:2502.16982",
        (*_ADAM, _DTYPE),
        muon.OPTIONS,
        after=muon.adamw_factor,
    ),
    "schedule_free_adamw": Rule(
        schedule_free.rms,
        "arXiv:2405.15682",
        _ADAM,
        schedule_free.OPTIONS,
        after=schedule_free.averaging,
        averages=True,
    ),
}
