"""Schedules against the published formulas, and what the optimiser chain does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import (
    decay_mask,
    make_optimizer,
    make_schedule,
    path_name,
)

PARAMS = {
    "patch_embed": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 3))},
}


def recipe(**values):
    config = default_config()
    config.total_steps = 100
    config.update(values)
    return config


def test_cosine_of_the_published_fine_tuning():
    config = recipe(total_steps=20_000, warmup_steps=500, learning_rate=0.03)
    schedule = make_schedule(config)
    expected = {0: 0.0, 250: 0.015, 500: 0.03, 10_250: 0.015, 20_000: 0.0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_cosine_of_the_published_pretraining():
    config = recipe(total_steps=111_477, warmup_steps=10_000, learning_rate=1e-3)
    schedule = make_schedule(config)
    expected = {5000: 5e-4, 10_000: 1e-3, 60_738: 5e-4, 111_477: 0.0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_linear_ends_where_it_is_told():
    schedule = make_schedule(
        recipe(schedule="linear", warmup_steps=20, end_learning_rate=1e-5)
    )
    expected = {10: 5e-4, 20: 1e-3, 60: (1e-3 + 1e-5) / 2, 100: 1e-5}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_rsqrt_with_cooldown():
    schedule = make_schedule(
        recipe(schedule="rsqrt", warmup_steps=10, rsqrt_timescale=30, cooldown_steps=20)
    )
    expected = {
        5: 0.5e-3,
        10: 1e-3,
        40: 1e-3 / np.sqrt(2),
        80: 1e-3 / np.sqrt(1 + 70 / 30),
        90: 0.5e-3 / np.sqrt(1 + 80 / 30),
        100: 0.0,
    }
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-12)


def test_constant_without_warm_up_starts_at_the_rate():
    schedule = make_schedule(recipe(schedule="constant"))
    assert [float(schedule(step)) for step in (0, 50, 100)] == pytest.approx([1e-3] * 3)


def test_adamw_equals_optax():
    config = recipe(weight_decay=0.1, grad_clip_norm=0.0)
    grads = jax.tree.map(lambda x: 0.3 * x + 0.1, PARAMS)
    ours = make_optimizer(config, PARAMS)
    reference = optax.adamw(
        1.0, weight_decay=0.1, mask=decay_mask(PARAMS, config.weight_decay_on)
    )
    our_state, their_state = ours.init(PARAMS), reference.init(PARAMS)
    for _ in range(3):
        directions, our_state = ours.update(grads, our_state, PARAMS)
        updates, their_state = reference.update(grads, their_state, PARAMS)
        for a, b in zip(
            jax.tree.leaves(directions), jax.tree.leaves(updates), strict=True
        ):
            np.testing.assert_allclose(-a, b, rtol=1e-6)


def test_momentum_and_clipping_by_hand():
    config = recipe(optimizer="sgd", momentum=0.9, grad_clip_norm=1.0)
    params = {"kernel": jnp.zeros(2)}
    grads = {"kernel": jnp.array([3.0, 4.0])}  # norm 5, clipped to 1
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)
    first, state = optimizer.update(grads, state, params)
    second, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(first["kernel"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(second["kernel"], [1.14, 1.52], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_dtype(name):
    config = recipe(optimizer=name, momentum_dtype="bfloat16")
    state = make_optimizer(config, PARAMS).init(PARAMS)
    dtypes = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
    assert jnp.dtype("bfloat16") in dtypes
    # Adam's second moment stays in float32.
    assert (jnp.dtype("float32") in dtypes) == (name == "adamw")


def test_only_kernels_decay_by_default():
    mask = decay_mask(PARAMS, default_config().weight_decay_on)
    assert mask == {
        "patch_embed": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "head": {"kernel": True},
    }


def test_a_pattern_has_to_match_the_whole_path():
    for pattern, expected in (
        ("head/.*", {"head/kernel"}),
        ("kernel", set()),
        ("norm", set()),
        (".*/kernel|norm/.*", {"patch_embed/kernel", "norm/scale", "head/kernel"}),
        ("patch_embed/k", set()),
    ):
        mask = jax.tree.leaves_with_path(decay_mask(PARAMS, pattern))
        assert {path_name(path) for path, decays in mask if decays} == expected, pattern


def test_decay_that_applies_to_nothing_is_refused():
    config = recipe(weight_decay=0.1, weight_decay_on="kernels")
    with pytest.raises(UserError, match=r"'kernels' matches no parameter.*head/kernel"):
        make_optimizer(config, PARAMS)


def test_adafactor_by_its_published_formulas():
    rng = np.random.default_rng(0)
    params = {"kernel": np.ones((32, 48), np.float32), "bias": np.ones(8, np.float32)}
    config = recipe(optimizer="adafactor", b2=0.5, momentum=0.9, grad_clip_norm=0.0)
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)
    rows, columns, second = 0.0, 0.0, 0.0
    expected = {"kernel": 0.0, "bias": 0.0}
    for t in (1, 2, 3):
        grads = {
            name: rng.standard_normal(x.shape).astype(np.float32)
            for name, x in params.items()
        }
        found, state = optimizer.update(grads, state, params)
        decay = min(0.5, 1 - t**-0.8)
        square = np.float64(grads["kernel"]) ** 2
        rows = decay * rows + (1 - decay) * square.mean(1, keepdims=True)
        columns = decay * columns + (1 - decay) * square.mean(0, keepdims=True)
        second = decay * second + (1 - decay) * np.float64(grads["bias"]) ** 2
        scaled = {
            "kernel": grads["kernel"] / np.sqrt(rows * columns / rows.mean()),
            "bias": grads["bias"] / np.sqrt(second),
        }
        for name, direction in scaled.items():
            expected[name] = 0.9 * expected[name] + 0.1 * direction
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-4, atol=1e-6
            )


def test_adafactor_keeps_vectors_of_matrices():
    params = {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(64)}
    config = recipe(optimizer="adafactor", momentum_dtype="bfloat16")
    state = make_optimizer(config, params).init(params)
    sizes = {x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32}
    assert sizes == {64, 128, 1}
    moments = [x for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16]
    assert sorted(x.size for x in moments) == [64, 64 * 128]
    plain = make_optimizer(recipe(optimizer="adafactor", momentum=0.0), params)
    kept = sum(x.size for x in jax.tree.leaves(plain.init(params)))
    assert kept < 64 + 128 + 64 + 8
