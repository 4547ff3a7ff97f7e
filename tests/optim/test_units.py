"""Norms, clipping and layer-wise adaptation of units of parameters, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.optim.units import (
    clip_by_unit_norm,
    scale_by_unit_trust_ratio,
    unit_norms,
    unit_of,
)
from vit_jax.sharding import make_mesh, shardings

BLOCK = "blocks_00/attention"
# Query and key form one unit of norm 13, and so do both kinds of positions.
TREE = {
    "blocks_00": {
        "attention": {
            "query": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([0.0])},
            "key": {"kernel": jnp.array([[4.0, 12.0]]), "bias": jnp.array([2.0])},
            "out": {"kernel": jnp.array([[2.0]])},
        }
    },
    "pos_embed": jnp.array([0.6]),
    "pos_embed_prefix": jnp.array([0.8]),
}


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        (f"{BLOCK}/query/kernel", f"{BLOCK}/qkv/kernel"),
        (f"{BLOCK}/value/bias", f"{BLOCK}/qkv/bias"),
        (f"{BLOCK}/out/kernel", f"{BLOCK}/out/kernel"),
        ("map_head/attention/query/kernel", "map_head/attention/query/kernel"),
        ("pos_embed_prefix", "pos_embed"),
        ("cls", "cls"),
    ],
)
def test_units_are_the_arrays_of_published_code(path, unit):
    assert unit_of(path) == unit


def test_norms():
    norms = unit_norms(TREE)
    attention = norms["blocks_00"]["attention"]
    assert attention["query"] == {"kernel": 13.0, "bias": 2.0}
    assert attention["key"] == {"kernel": 13.0, "bias": 2.0}
    assert attention["out"]["kernel"] == 2.0
    np.testing.assert_allclose(norms["pos_embed"], 1.0)
    np.testing.assert_allclose(norms["pos_embed_prefix"], 1.0)


def test_clipping_shrinks_only_units_above_the_limit():
    clipped, _ = clip_by_unit_norm(1.5).update(TREE, ())
    attention = clipped["blocks_00"]["attention"]
    shrunk = 1.5 / (13 + 1e-6)
    np.testing.assert_allclose(attention["query"]["kernel"], [[3 * shrunk, 0]])
    np.testing.assert_allclose(attention["key"]["kernel"], [[4 * shrunk, 12 * shrunk]])
    np.testing.assert_allclose(attention["key"]["bias"], [1.5], rtol=1e-6)
    assert clipped["pos_embed"] == TREE["pos_embed"]


def test_trust_ratio_leaves_what_it_does_not_apply_to_and_zero_norms():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0]), "c": jnp.zeros(1)}
    updates = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([5.0]), "c": jnp.ones(1)}
    scaling = scale_by_unit_trust_ratio(0.1, lambda path, _: path != "b")
    scaled, _ = scaling.update(updates, (), params)
    np.testing.assert_allclose(scaled["a"], [0, 0.1 * 5 / 2 * 2])
    assert scaled["b"] == 5
    assert scaled["c"] == 1
    zero, _ = scaling.update(jax.tree.map(jnp.zeros_like, updates), (), params)
    assert np.all(zero["a"] == 0)


def test_norms_of_sharded_parameters_are_those_of_the_whole():
    mesh = make_mesh(2, 2, 2)
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(size=(8, 8)).astype(np.float32)  # noqa: E731
    kernels = {"query": {"kernel": 0}, "key": {"kernel": 0}, "out": {"kernel": 0}}
    tree = {"blocks_00": {"attention": kernels}}
    params, grads = jax.tree.map(draw, tree), jax.tree.map(draw, tree)
    scaling = optax.chain(
        clip_by_unit_norm(1.0), scale_by_unit_trust_ratio(1.0, lambda *_: True)
    )

    def update(grads, params):
        return scaling.update(grads, scaling.init(params), params)[0]

    spread = jax.device_put((grads, params), shardings((grads, params), mesh))
    assert not jax.tree.leaves(spread)[0].sharding.is_fully_replicated
    found, expected = jax.jit(update)(*spread), update(grads, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
