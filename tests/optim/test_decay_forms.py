"""Weight decay that is scaled by the learning rate, or independent of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.groups import make_groups
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.optim.schedules import make_schedule

STEPS = 6
PARAMS = {
    name: {"kernel": jnp.ones(2)} for name in ("blocks_00", "head", "norm", "still")
}


def recipe(**values):
    config = default_config()
    config.update(
        {
            "total_steps": STEPS,
            "warmup_steps": 2,
            "learning_rate": 0.02,
            "weight_decay": 0.1,
            "weight_decay_form": "independent",
            "grad_clip_norm": 0.0,
            "groups": "head/.*: lr=10; norm/.*: decay=0.3, lr=0.5; still/.*: lr=0",
        }
        | values
    )
    return config


def decayed(config):
    """Returns the parameters of a run whose gradients are all 0, by the step's rule."""
    groups = make_groups(config, PARAMS, OPTIMIZERS)
    optimizer = optax.with_extra_args_support(make_optimizer(config, PARAMS, groups))
    schedule, params, state = make_schedule(config), PARAMS, optimizer.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for step in range(STEPS):
        rate = schedule(step)
        known = {"step": jnp.int32(step), "rate": rate}
        directions, state = optimizer.update(zeros, state, params, **known)
        params = jax.tree.map(
            lambda p, d, lr, rate=rate: p - rate * lr * d,
            params,
            directions,
            groups.of("lr", params),
        )
    return {name: float(params[name]["kernel"][0]) for name in params}


# The schedule relative to its peak: the warm-up, then the cosine's half wave.
PACE = [0, 0.5, *(0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(4))]


@pytest.mark.parametrize("rate", [0.02, 2.0])
def test_independent_decay_knows_neither_the_rate_nor_its_factors(rate):
    found = decayed(recipe(learning_rate=rate))
    expected = {
        name: np.prod([1 - decay * pace for pace in PACE])
        for name, decay in (("blocks_00", 0.1), ("head", 0.1), ("norm", 0.3))
    }
    assert found == pytest.approx({**expected, "still": 1.0}, rel=1e-6)


def test_scaled_decay_knows_both():
    found = decayed(recipe(weight_decay_form="scaled", learning_rate=0.02))
    expected = {
        name: np.prod([1 - 0.02 * amount * pace for pace in PACE])
        for name, amount in (("blocks_00", 0.1), ("head", 1.0), ("norm", 0.15))
    }
    assert found == pytest.approx({**expected, "still": 1.0}, rel=1e-6)


def test_the_end_of_independent_decay():
    found = decayed(recipe(weight_decay_end=0.4, groups=""))
    ends = [4 - 1.5 * (1 + np.cos(np.pi * t / STEPS)) for t in range(STEPS)]
    expected = np.prod([1 - 0.1 * e * p for e, p in zip(ends, PACE, strict=True)])
    assert found == pytest.approx(dict.fromkeys(PARAMS, expected), rel=1e-6)


def test_independent_decay_of_averaged_parameters_moves_z():
    """z has no gradient: it shrinks alone, and y = x = z while all are equal."""
    values = {"optimizer": "schedule_free_adamw", "schedule": "constant", "groups": ""}
    found = decayed(recipe(**values, total_steps=2, warmup_steps=0))
    y = z = 1.0
    for step in range(STEPS):
        c, d = 1 / (step + 1), 0.1 * y
        y, z = y + c * (z - y) + (0.9 * (1 - c) - 1) * d, z - d
    assert found["head"] == pytest.approx(y, rel=1e-5)


def test_independent_decay_that_cannot_be_is_refused():
    def said(**values):
        with pytest.raises(UserError) as error:
            make_optimizer(recipe(**values), PARAMS)
        return str(error.value)

    key = "weight_decay_form=independent"
    assert said(weight_decay=0.0, groups="") == (
        f"{key} without weight decay has no effect; set weight_decay"
    )
    assert said(learning_rate=0.0).startswith(
        f"{key} with learning_rate=0.0: the decay"
    )
    assert said(groups="head/.*: rule=lars").startswith(
        f"{key} with rule=lars: its steps"
    )


@pytest.mark.parametrize("form", ["scaled", "independent"])
def test_the_factor_of_muons_adamw_scales_decay_only_where_it_is_scaled(form):
    values = {"optimizer": "muon", "groups": "", "weight_decay_form": form}
    config = recipe(**values, learning_rate=0.02)
    with config.unlocked():
        config.optimizer_options = {"adamw_lr": 3.0}
    amount = 0.1 if form == "independent" else 0.1 * 0.02 * 3
    expected = np.prod([1 - amount * pace for pace in PACE])
    assert decayed(config)["head"] == pytest.approx(expected, rel=1e-6)
