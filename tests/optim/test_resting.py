"""Parameters that begin later than others, against an optimiser that begins then."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.groups import make_groups, parse_rows
from vit_jax.optim.rules import OPTIMIZERS

PARAMS = {
    "norm": {"scale": jnp.ones(2)},
    "last": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])},
}
LAST = PARAMS["last"]["kernel"]
RATE = 0.1


def recipe(**values):
    config = default_config()
    config.total_steps = 100
    config.update({"weight_decay": 0.1, "grad_clip_norm": 0.0} | values)
    return config


def gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), PARAMS)


def trajectory(config, steps):
    """Returns the parameters after each step."""
    optimizer = optax.with_extra_args_support(make_optimizer(config, PARAMS))
    params, state, found = PARAMS, optimizer.init(PARAMS), []
    for step in range(steps):
        directions, state = optimizer.update(
            gradients(step), state, params, step=jnp.int32(step), rate=RATE
        )
        params = jax.tree.map(lambda p, d: p - RATE * d, params, directions)
        found.append(params)
    return found


@pytest.mark.parametrize("rule", sorted(OPTIMIZERS))
def test_a_later_begin_is_a_new_optimiser_at_that_step(rule):
    begin, steps = 3, 6
    found = trajectory(
        recipe(optimizer=rule, groups=f"last/.*: begin={begin}"), begin + steps
    )
    for params in found[:begin]:
        np.testing.assert_array_equal(
            params["last"]["kernel"], PARAMS["last"]["kernel"]
        )
    # The others never notice.
    plain = trajectory(recipe(optimizer=rule), begin + steps)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one["norm"]["scale"], other["norm"]["scale"])
    fresh = optax.with_extra_args_support(
        make_optimizer(recipe(optimizer=rule), PARAMS)
    )
    params, state = PARAMS, fresh.init(PARAMS)
    for step in range(begin, begin + steps):
        known = {"step": jnp.int32(step), "rate": RATE}
        directions, state = fresh.update(gradients(step), state, params, **known)
        params = jax.tree.map(lambda p, d: p - RATE * d, params, directions)
        np.testing.assert_allclose(
            found[step]["last"]["kernel"], params["last"]["kernel"], rtol=1e-6
        )


def test_adam_of_a_later_start_differs_because_its_count_has_advanced():
    """Compares first directions: by `begin` each is a sign, by `start` larger.

    Adam divides (1 − b1) g by the root of (1 − b2) g², without correcting for the
    averages' beginning at 0 if it counts the steps before: 0.1 / √0.001 = 3.16.
    """
    config = recipe(weight_decay=0.0, groups="last/.*: begin=2000")
    optimizer = make_optimizer(config, PARAMS)
    state, grads = optimizer.init(PARAMS), gradients(0)
    directions, _ = optimizer.update(grads, state, PARAMS, step=jnp.int32(2000))
    signs = np.sign(grads["last"]["kernel"])
    np.testing.assert_allclose(directions["last"]["kernel"], signs, rtol=1e-5)
    # What `start` comes to: 2000 updates by zeros before.
    optimizer = make_optimizer(recipe(weight_decay=0.0), PARAMS)
    zeros = optimizer.init(PARAMS)
    counted = jax.tree.map(lambda x: x if x.ndim else jnp.full_like(x, 2000), zeros)
    directions, _ = optimizer.update(grads, counted, PARAMS)
    larger = 0.1 / np.sqrt(0.001 / (1 - 0.999**2001))
    assert 2.9 < larger < 3.2
    np.testing.assert_allclose(directions["last"]["kernel"], larger * signs, rtol=1e-5)


def test_rows_may_combine_rules_and_begins():
    config = recipe(groups="last/.*: begin=2, rule=sgd; norm/.*: rule=sgd")
    found = trajectory(config, 4)
    plain = trajectory(recipe(optimizer="sgd"), 4)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one["norm"]["scale"], other["norm"]["scale"])
    np.testing.assert_array_equal(found[1]["last"]["kernel"], LAST)
    assert np.any(found[2]["last"]["kernel"] != LAST)


def test_clipping_still_sees_gradients_of_parameters_that_rest():
    config = recipe(optimizer="sgd", weight_decay=0.0, grad_clip_norm=1.0)
    grads = {"norm": {"scale": jnp.zeros(2)}, "last": {"kernel": jnp.full((2, 2), 5.0)}}
    grads["norm"]["scale"] = jnp.array([0.0, 10.0])
    config.groups = "last/.*: begin=1"
    optimizer = make_optimizer(config, PARAMS)
    found, _ = optimizer.update(
        grads, optimizer.init(PARAMS), PARAMS, step=jnp.int32(0)
    )
    norm = np.sqrt(200)
    np.testing.assert_allclose(found["norm"]["scale"], [0, 10 / norm], rtol=1e-6)
    assert not np.any(found["last"]["kernel"])


def test_an_objectives_begin_counts_unless_a_row_sets_it():
    def begins(groups):
        own = {"last/.*": {"begin": 7}}
        found = make_groups(recipe(groups=groups), PARAMS, OPTIMIZERS, own)
        return {path: group.begin for path, group in found.by_path.items()}

    assert begins("") == {"norm/scale": 0, "last/kernel": 7}
    assert begins("last/.*: lr=2") == {"norm/scale": 0, "last/kernel": 7}
    assert begins("last/.*: begin=0") == {"norm/scale": 0, "last/kernel": 0}
    with pytest.raises(UserError, match="begin=-1: expected a number of at least 0"):
        parse_rows("last/.*: begin=-1", OPTIMIZERS)


def test_without_begins_the_state_is_as_before():
    rows = recipe(groups="last/.*: rule=sgd")
    state = make_optimizer(rows, PARAMS).init(PARAMS)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)}
    assert any("['sgd']" in path for path in paths)
    assert not any("@" in path for path in paths)
