"""The projection head against its formula, and its gradient at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.models.projection import ProjectionHead

FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 6)), jnp.float32)


def some(head, scale=0.5):
    shapes = jax.eval_shape(head.init, jax.random.key(0), FEATURES)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), shapes
    )


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("fixed", [False, True])
def test_logits_by_the_formula(depth, fixed):
    head = ProjectionHead(7, 5, 4, depth, fixed)
    params = some(head)
    x = np.asarray(FEATURES, np.float64)
    for number in range(1, depth + 1):
        layer = params[f"fc{number}"]
        if number > 1:
            x = x * scipy.special.ndtr(x)  # exact GELU
        x = x @ layer["kernel"] + layer["bias"]
    assert x.shape == (3, 2, 4)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    last = params["last_layer"]
    assert ("scale" in last) != fixed
    weights = last["kernel"] / np.linalg.norm(last["kernel"], axis=0)
    if not fixed:
        weights = weights * last["scale"]
    found = head.apply({"params": params}, FEATURES)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, x @ weights, atol=2e-6)


def test_a_vector_of_zeros_has_finite_gradients():
    """PyTorch divides by at least 1e-12, and its gradient of the length is 0 there."""
    head = ProjectionHead(7, 5, 4, 1)
    params = jax.tree.map(jnp.zeros_like, some(head))
    params["last_layer"] = some(head)["last_layer"]
    logits, grads = jax.value_and_grad(
        lambda p: head.apply({"params": p}, FEATURES)[0, 0, 0]
    )(params)
    assert logits == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_logits_of_low_precision_are_float32():
    head = ProjectionHead(7, 5, 4, dtype=jnp.bfloat16)
    params = some(head)
    low = head.apply({"params": params}, FEATURES)
    high = ProjectionHead(7, 5, 4).apply({"params": params}, FEATURES)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, atol=0.03)
    assert np.any(low != high)


def test_initial_lengths_are_one():
    head = ProjectionHead(7, 5, 4, fixed_norm=False)
    params = jax.jit(head.init)(jax.random.key(0), FEATURES)["params"]
    assert np.all(params["last_layer"]["scale"] == 1)
    assert np.abs(params["last_layer"]["kernel"]).max() <= 0.5
