import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.attention import IMPLEMENTATIONS, attend


def random_arguments(dtype=jnp.float32, tokens=5, source=7):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(2, count, 3, 8)), dtype)
        for count in (tokens, source, source)
    )


def test_the_formulations_are_these():
    assert set(IMPLEMENTATIONS) == {"auto", "xla", "pallas", "explicit"}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_the_formula_in_float64(implementation):
    arguments = random_arguments()
    mixed, weights = attend(*arguments, implementation=implementation)
    assert weights is None or implementation == "explicit"

    query, key, value = (np.asarray(x, np.float64) for x in arguments)
    scores = np.exp(np.einsum("bnhk,bmhk->bhnm", query, key) / np.sqrt(8))
    expected = scores / scores.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhnm,bmhk->bnhk", expected, value)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_explicit_and_fused_have_the_same_gradients():
    def gradients(implementation):
        def loss(*arguments):
            mixed, _ = attend(*arguments, implementation=implementation)
            return jnp.sum(jnp.sin(mixed))

        return jax.grad(loss, argnums=(0, 1, 2))(*random_arguments())

    for one, other in zip(gradients("xla"), gradients("explicit"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weights_come_with_any_formulation_and_rows_sum_to_one(implementation):
    query, key, value = random_arguments()
    mixed, weights = attend(
        query, key, value, implementation=implementation, return_weights=True
    )
    assert weights.shape == (2, 3, 5, 7)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert weights.min() >= 0
    np.testing.assert_allclose(
        jnp.einsum("bhnm,bmhk->bnhk", weights, value), mixed, atol=1e-6
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_in_and_out_with_a_float32_softmax(implementation):
    arguments = random_arguments(jnp.bfloat16, tokens=6, source=6)
    mixed, _ = attend(*arguments, implementation=implementation)
    assert mixed.dtype == jnp.bfloat16
    exact, _ = attend(*(x.astype(jnp.float32) for x in arguments))
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=0.02)
    _, weights = attend(*arguments, return_weights=True)
    assert weights.dtype == jnp.float32
    # In bfloat16 the sum would miss one by more than this.
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_unknown_formulation_is_refused():
    with pytest.raises(
        ValueError, match="'flash', expected one of auto, xla, pallas, expl"
    ):
        attend(*random_arguments(), implementation="flash")
