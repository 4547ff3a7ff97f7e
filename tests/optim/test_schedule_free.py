"""Schedule-free AdamW, compared with the original package in PyTorch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.schedule_free import averages_of, has_averages

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "schedule_free.npz")
NAMES = "kernel", "bias"
OPTIONS = {"constant": {}, "cosine": {"r": 1, "weight_lr_power": 1.0}}
B1 = {"constant": 0.9, "cosine": 0.8}


def recipe(case="constant", **values):
    config = default_config()
    config.total_steps, config.optimizer = 30, "schedule_free_adamw"
    config.grad_clip_norm, config.weight_decay, config.b1 = 0.0, 0.1, B1[case]
    with config.unlocked():
        config.optimizer_options = OPTIONS[case]
    config.update(values)
    return config


def golden(prefix):
    return {name: jnp.asarray(GOLDEN[f"{prefix}/{name}"]) for name in NAMES}


def descent(config, case="constant", prefix="", group_lr=1.0):
    """Yields the state and the parameters after every update of a golden case.

    Args:
      config: the run's.
      case: the case whose rates are taken.
      prefix: a subtree that the parameters are in.
      group_lr: factor of the parameters' group; the rates are lower by as much.
    """
    params = {prefix: golden("start")} if prefix else golden("start")
    curvature, noise = golden("curvature"), golden("noise")
    optimizer = make_optimizer(config, params)
    update = jax.jit(optax.with_extra_args_support(optimizer).update)
    state = optimizer.init(params)
    for step, rate in enumerate(GOLDEN[f"{case}/rates"] / group_lr):
        own = params[prefix] if prefix else params
        grads = jax.tree.map(jnp.multiply, curvature, own)
        grads = {name: g + noise[name][step] for name, g in grads.items()}
        grads = {prefix: grads} if prefix else grads
        directions, state = update(
            grads, state, params, step=jnp.int32(step), rate=jnp.float32(rate)
        )
        params = optax.tree.add_scale(params, -rate * group_lr, directions)
        yield state, params


def average(state, params, b1):
    return averages_of(state, params, b1, lambda tree: tree)


@pytest.mark.parametrize("case", OPTIONS)
def test_thirty_updates_equal_the_original(case):
    for step, (state, y) in enumerate(descent(recipe(case), case)):
        x = average(state, y, B1[case])
        for name in NAMES:
            for found, kind in ((y, "y"), (x, "x")):
                expected = GOLDEN[f"{case}/{kind}/{name}"][step]
                np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-6)
    assert np.abs(x["kernel"] - y["kernel"]).max() > 1e-3


def test_a_factor_of_the_rate_scales_its_steps_and_not_its_average():
    """A group with lr=4 moves like a run with four times the learning rate."""
    for step, (_, y) in enumerate(descent(recipe(groups=".*: lr=4"), group_lr=4.0)):
        expected = GOLDEN["constant/y/kernel"][step]
        np.testing.assert_allclose(y["kernel"], expected, rtol=0, atol=2e-6)


def test_a_parameter_that_starts_later_rests_with_its_average():
    config = recipe(groups="w/kernel: start=10", weight_decay_on=".*kernel")
    start = golden("start")["kernel"]
    for step, (state, params) in enumerate(descent(config, prefix="w")):
        z = average(state, params, config.b1)["w"]["kernel"]
        for point in (params["w"]["kernel"], z):
            assert np.array_equal(point, start) == (step < 10)


def test_other_parameters_are_not_averaged():
    """Only those of the rule are, wherever its state is: by group, guarded."""
    config = recipe(
        optimizer="sgd", groups="w/bias: rule=schedule_free_adamw", bad_update="skip"
    )
    params = {"w": golden("start")}
    state = make_optimizer(config, params).init(params)
    assert has_averages(state)
    moved = jax.tree.map(lambda p: p + 1, params)
    found = average(state, moved, 0.5)["w"]
    np.testing.assert_array_equal(found["kernel"], moved["w"]["kernel"])
    # y + (z − y)(1 − 1/b1) with z = y − 1
    np.testing.assert_allclose(found["bias"], moved["w"]["bias"] + 1, rtol=1e-6)
    assert not has_averages(
        make_optimizer(recipe(optimizer="sgd", optimizer_options={}), params).init(
            params
        )
    )


def test_other_averages_are_refused():
    params = {"w": golden("start")}
    message = (
        "ema_decay=0.9 with optimizer=schedule_free_adamw, which averages the "
        "parameters itself; leave it at 0.0\n"
        "b1=0.0 with optimizer=schedule_free_adamw: gradients would be computed "
        "without any averaging; give a number above 0, such as 0.9"
    )
    with pytest.raises(UserError) as error:
        make_optimizer(recipe(ema_decay=0.9, b1=0.0), params)
    assert str(error.value) == message
