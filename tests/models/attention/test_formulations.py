import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.models.attention.formulations import (
    FASTEST_ON_CPU,
    IMPLEMENTATIONS,
    attend,
    candidates,
    why_not_cudnn,
)

# cuDNN's compiles only for GPUs: see benchmarks/compile_gpu.py.
ON_CPU = [name for name in IMPLEMENTATIONS if name != "cudnn"]


def random_arguments(dtype=jnp.float32, tokens=5, source=7):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(2, count, 3, 8)), dtype)
        for count in (tokens, source, source)
    )


def test_the_list_of_formulations():
    assert set(IMPLEMENTATIONS) == {
        "auto",
        "xla",
        "pallas",
        "cudnn",
        "per_head",
        "explicit",
    }


@pytest.mark.parametrize("implementation", ON_CPU)
def test_equals_the_formula_in_float64(implementation):
    arguments = random_arguments()
    mixed, weights = attend(*arguments, implementation=implementation)
    assert weights is None or implementation == "explicit"

    query, key, value = (np.asarray(x, np.float64) for x in arguments)
    scores = np.exp(np.einsum("bnhk,bmhk->bhnm", query, key) / np.sqrt(8))
    expected = scores / scores.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhnm,bmhk->bnhk", expected, value)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "per_head"])
def test_explicit_and_others_have_the_same_gradients(implementation):
    def gradients(implementation):
        def loss(*arguments):
            mixed, _ = attend(*arguments, implementation=implementation)
            return jnp.sum(jnp.sin(mixed))

        return jax.grad(loss, argnums=(0, 1, 2))(*random_arguments())

    both = gradients(implementation), gradients("explicit")
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "per_head"])
def test_large_scores_do_not_overflow(implementation):
    query, key, value = random_arguments()
    mixed, _ = attend(1e3 * query, 1e3 * key, value, implementation=implementation)
    expected, _ = attend(1e3 * query, 1e3 * key, value, implementation="explicit")
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_each_device_computes_its_own_heads_one_by_one():
    placement = sharding.MeshPlacement(sharding.make_mesh(data=2, tensor=4))
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(4, 5, 8, 6)), jnp.float32) for _ in range(3)]

    def attention(*arrays):
        return attend(*arrays, implementation="per_head", placement=placement)[0]

    expected, _ = attend(*arrays, implementation="explicit")
    compiled = jax.jit(attention).lower(*arrays).compile()
    np.testing.assert_allclose(compiled(*arrays), expected, atol=1e-6)
    text = jax.jit(attention).lower(*arrays).as_text()
    assert "tensor<2x5x5xf32>" in text  # the scores of half the examples, of one head


@pytest.mark.parametrize("implementation", ON_CPU)
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


@pytest.mark.parametrize("implementation", ON_CPU)
def test_bfloat16_in_and_out_with_a_float32_softmax(implementation):
    arguments = random_arguments(jnp.bfloat16, tokens=6, source=6)
    mixed, _ = attend(*arguments, implementation=implementation)
    assert mixed.dtype == jnp.bfloat16
    exact, _ = attend(*(x.astype(jnp.float32) for x in arguments))
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=0.02)
    _, weights = attend(*arguments, return_weights=True)
    assert weights.dtype == jnp.float32
    # In bfloat16 the sum would differ from one by more than this.
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_unknown_formulation_is_refused():
    with pytest.raises(
        ValueError, match="'flash', expected one of auto, xla, pallas, cudnn, p"
    ):
        attend(*random_arguments(), implementation="flash")


B16 = {"tokens": 197, "heads": 12, "channels": 64, "dtype": jnp.bfloat16}


@pytest.mark.parametrize(
    ("platform", "kind", "changes", "expected"),
    [
        ("tpu", "TPU v5 lite", {}, ("pallas", "xla")),
        ("tpu", "TPU v4", {"dtype": jnp.float32}, ("pallas", "xla")),
        ("tpu", "TPU v3", {}, ("xla",)),
        ("tpu", "TPU v4", {"tokens": 4097}, ("xla",)),  # does not fit the kernels
        ("gpu", "NVIDIA H100 80GB HBM3", {}, ("cudnn", "explicit", "xla")),
        ("gpu", "NVIDIA H100 80GB HBM3", {"dtype": jnp.float32}, ("explicit", "xla")),
        ("gpu", "NVIDIA H100 80GB HBM3", {"channels": 20}, ("explicit", "xla")),
        ("gpu", "NVIDIA H100 80GB HBM3", {"channels": 136}, ("explicit", "xla")),
        ("cpu", "cpu", {}, (FASTEST_ON_CPU,)),
    ],
)
def test_candidates_are_formulations_that_can_run(platform, kind, changes, expected):
    assert candidates(platform, kind, **(B16 | changes)) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("gpu", 64, jnp.bfloat16), ""),
        (("gpu", 72, jnp.float16), ""),
        (("tpu", 64, jnp.bfloat16), "NVIDIA GPUs, but the devices are tpu"),
        (("gpu", 64, jnp.float32), "in bfloat16, but compute_dtype is float32"),
        (("gpu", 20, jnp.bfloat16), "a head has 20 channels, but it takes multiples"),
    ],
)
def test_limits_of_cudnn_are_explained(arguments, reason):
    assert reason in why_not_cudnn(*arguments)
    assert bool(reason) == bool(why_not_cudnn(*arguments))


def test_odd_lengths_are_padded_for_cudnn(monkeypatch):
    """Replaces the call, which needs a GPU, by a formulation that does not."""
    lengths = []

    def fused(*operands, implementation, **options):
        assert implementation == "cudnn"
        lengths.append(operands[0].shape[1])
        return plain(*operands, implementation="xla", **options)

    plain = jax.nn.dot_product_attention
    arguments = random_arguments(tokens=7), random_arguments(tokens=8, source=8)
    expected = [attend(*operands, implementation="xla") for operands in arguments]
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    for operands, (mixed, _) in zip(arguments, expected, strict=True):
        found, _ = attend(*operands, implementation="cudnn")
        np.testing.assert_allclose(found, mixed, atol=1e-6)
    assert lengths == [8, 8]

    def loss(*operands):
        return jnp.sin(attend(*operands, implementation="cudnn")[0]).sum()

    found = jax.grad(loss, argnums=(0, 1, 2))(*arguments[0])
    monkeypatch.undo()
    explicit = jax.grad(
        lambda *operands: jnp.sin(
            attend(*operands, implementation="explicit")[0]
        ).sum(),
        argnums=(0, 1, 2),
    )(*arguments[0])
    for one, other in zip(found, explicit, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("tokens", "source"), [(1, 7), (1, 1)])
def test_a_single_query_does_not_use_cudnn(tokens, source):
    arguments = random_arguments(tokens=tokens, source=source)
    found, _ = attend(*arguments, implementation="cudnn")
    expected, _ = attend(*arguments, implementation="explicit")
    np.testing.assert_array_equal(found, expected)


def test_prompts_without_queries_get_some_for_kernels_of_self_attention(monkeypatch):
    """Counts the tokens that reach cuDNN's call, which needs a GPU, and the kernels."""
    shapes = []

    def fused(query, key, value, *, implementation, **options):
        shapes.append((query.shape[1], key.shape[1]))
        return plain(query, key, value, implementation="xla", **options)

    plain = jax.nn.dot_product_attention
    few = random_arguments(tokens=2, source=3)
    most = random_arguments(tokens=5, source=7)

    def found(operands, implementation):
        def loss(*operands):
            mixed, _ = attend(*operands, implementation=implementation)
            return jnp.sin(mixed).sum(), mixed

        gradients, mixed = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*operands)
        return mixed, *gradients

    expected = found(most, "explicit")
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    for implementation in ("cudnn", "pallas"):
        for one, other in zip(found(most, implementation), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=implementation)
    # One more for cuDNN, whose gradient needs even numbers.
    assert shapes == [(8, 8), (7, 7)]
    # Where most tokens are no queries, more of them would only cost time.
    found(few, "cudnn")
    found(few, "pallas")
    assert shapes[2:] == [(2, 3)]
