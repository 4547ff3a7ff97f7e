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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_dtype(name):
    config = recipe(optimizer=name, momentum_dtype="bfloat16")
    state = make_optimizer(config, PARAMS).init(PARAMS)
    dtypes = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
    assert jnp.dtype("bfloat16") in dtypes
    # Adam's second moment stays in float32.
    assert (jnp.dtype("float32") in dtypes) == (name == "adamw")
