"""The optimiser chain, compared with optax and with results by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.optim.chain import make_optimizer

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


def test_adamw_equals_optax():
    config = recipe(weight_decay=0.1, grad_clip_norm=0.0)
    grads = jax.tree.map(lambda x: 0.3 * x + 0.1, PARAMS)
    ours = make_optimizer(config, PARAMS)
    kernels = {
        "patch_embed": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "head": {"kernel": True},
    }
    reference = optax.adamw(1.0, weight_decay=0.1, mask=kernels)
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


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_momentum_dtype(name):
    config = recipe(optimizer=name, momentum_dtype="bfloat16")
    state = make_optimizer(config, PARAMS).init(PARAMS)
    dtypes = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
    assert jnp.dtype("bfloat16") in dtypes
    # Adam's second moment stays in float32.
    assert (jnp.dtype("float32") in dtypes) == (name == "adamw")


def trajectory(config, params, gradients, *, decays=".*"):
    """Applies the optimiser to a list of gradients of one parameter "w/kernel"."""
    config.weight_decay_on = decays
    params = {"w": {"kernel": jnp.array(params)}}
    optimizer = optax.with_extra_args_support(make_optimizer(config, params))
    state, rate, found = optimizer.init(params), config.learning_rate, []
    for step, grad in enumerate(gradients):
        grads = {"w": {"kernel": jnp.array(grad)}}
        directions, state = optimizer.update(grads, state, params, step=step)
        params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
        found.append(params["w"]["kernel"])
    return found


def test_lars_by_hand():
    config = recipe(optimizer="lars", learning_rate=0.1, grad_clip_norm=0.0)
    first, second = trajectory(config, [[3.0, 4.0]], [[[0.6, 0.8]]] * 2)
    np.testing.assert_allclose(first, [[2.9997, 3.9996]], rtol=1e-6)
    np.testing.assert_allclose(second, [[2.99913, 3.99884]], rtol=1e-6)


def test_lars_leaves_vectors_to_momentum():
    config = recipe(optimizer="lars", learning_rate=0.1, grad_clip_norm=0.0)
    first, second = trajectory(config, [3.0, 4.0], [[0.6, 0.8]] * 2)
    np.testing.assert_allclose(first, [2.94, 3.92], rtol=1e-6)
    np.testing.assert_allclose(second, [2.826, 3.768], rtol=1e-6)


def test_lars_momentum_knows_no_learning_rate():
    # optax.lars multiplies by the rate first, so a later change would not apply to it.
    config = recipe(optimizer="lars", grad_clip_norm=0.0)
    params = {"kernel": jnp.array([[3.0, 4.0]])}
    optimizer = make_optimizer(config, params)
    grads = {"kernel": jnp.array([[0.6, 0.8]])}
    first, state = optimizer.update(grads, optimizer.init(params), params)
    second, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(first["kernel"], [[0.003, 0.004]], rtol=1e-6)
    np.testing.assert_allclose(second["kernel"], [[0.0057, 0.0076]], rtol=1e-6)


@pytest.mark.parametrize(
    ("weight_decay", "expected"),
    [(0.02, [[2.6497662, 3.6431579]]), (0.0, [[2.9000002, 3.9000001]])],
)
def test_lamb_by_hand(weight_decay, expected):
    config = recipe(
        optimizer="lamb", learning_rate=0.1, weight_decay=weight_decay, eps=1e-6
    )
    (result,) = trajectory(config, [[3.0, 4.0]], [[[6.0, 8.0]]])
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_lamb_shares_a_ratio_between_query_key_and_value():
    kernels = {name: {"kernel": jnp.ones((2, 2))} for name in ("query", "key", "value")}
    params = {"blocks_00": {"attention": kernels}}
    config = recipe(optimizer="lamb", weight_decay=0.1, grad_clip_norm=0.0)
    scales = {"query": 1.0, "key": 2.0, "value": 0.0}
    grads = jax.tree.map_with_path(lambda path, x: x * scales[path[2].key], params)
    optimizer = make_optimizer(config, params)
    directions, _ = optimizer.update(grads, optimizer.init(params), params)
    found = directions["blocks_00"]["attention"]
    # Adam's first direction is the sign; with its decay: 1.1, 1.1 and 0.1.
    ratio = np.sqrt(12) / np.sqrt(4 * (1.1**2 + 1.1**2 + 0.1**2))
    np.testing.assert_allclose(found["query"]["kernel"], 1.1 * ratio, rtol=1e-5)
    np.testing.assert_allclose(found["value"]["kernel"], 0.1 * ratio, rtol=1e-5)


def test_groups_may_choose_rules_with_and_without_a_second_part():
    config = recipe(groups="head/.*: rule=lars", weight_decay=0.1, grad_clip_norm=0.0)
    grads = jax.tree.map(lambda x: 0.5 * x, PARAMS)
    mixed, plain = (
        make_optimizer(config, PARAMS),
        make_optimizer(recipe(weight_decay=0.1, grad_clip_norm=0.0), PARAMS),
    )
    found, _ = mixed.update(grads, mixed.init(PARAMS), PARAMS)
    expected, _ = plain.update(grads, plain.init(PARAMS), PARAMS)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, found["patch_embed"], expected["patch_embed"])
    )
    # 0.001 · ‖p‖/‖d‖ · d with d = 0.5 + 0.1
    np.testing.assert_allclose(found["head"]["kernel"], 0.001, rtol=1e-6)


def test_gradients_are_clipped_parameter_by_parameter():
    config = recipe(optimizer="sgd", grad_clip_norm=0.0, grad_clip_parameter_norm=3.0)
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(2)}}
    grads = {
        "a": {"kernel": jnp.array([30.0, 40.0])},
        "b": {"kernel": jnp.array([0.3, 0.4])},
    }
    optimizer = make_optimizer(config, params)
    found, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(found["a"]["kernel"], [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(found["b"]["kernel"], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize("bad_update", ["stop", "skip"])
def test_weight_decay_follows_a_cosine(bad_update):
    config = recipe(
        optimizer="sgd",
        weight_decay=0.04,
        weight_decay_end=0.4,
        total_steps=4,
        learning_rate=1.0,
        bad_update=bad_update,
        grad_clip_norm=0.0,
    )
    params = {"kernel": jnp.array([1.0]), "bias": jnp.array([1.0])}
    optimizer = optax.with_extra_args_support(make_optimizer(config, params))
    state, grads = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    found = []
    for step in range(4):
        loss = jnp.float32(1)
        updates, state = optimizer.update(grads, state, params, loss=loss, step=step)
        found.append(float(updates["kernel"][0]))
        assert updates["bias"] == 0
    expected = [0.4 - 0.18 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_states_of_earlier_optimisers_have_their_paths():
    config = recipe(weight_decay=0.1)
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree.leaves_with_path(
            make_optimizer(config, {"w": {"kernel": jnp.ones((2, 2))}}).init(
                {"w": {"kernel": jnp.ones((2, 2))}}
            )
        )
    ]
    assert paths == ["[1].count", "[1].mu['w']['kernel']", "[1].nu['w']['kernel']"]
