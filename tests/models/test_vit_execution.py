"""Execution choices: none changes the function, its gradients or its random draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import VisionTransformer
from vit_jax.models.blocks import Attention, Block, Mlp
from vit_jax.models.heads import MapHead
from vit_jax.models.layers import make_layers

WAYS = {
    "remat": {"remat": "full"},
    "scan and remat": {"scan": True, "remat": "full"},
    "explicit attention": {"attention": "explicit"},
}
DROP = {"dropout_rate": 0.2, "stochastic_depth": 0.4}


@pytest.fixture
def training(tiny, random_params, random_images):
    """Returns a function: model fields → (seed → loss and gradients)."""
    architecture = tiny(depth=3, layer_scale=True)
    params, images = random_params(architecture), random_images(architecture, batch=4)

    def training(**fields):
        model = VisionTransformer(architecture, **fields)

        # Compilation dominates the time here, so it should do little.
        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        @jax.value_and_grad
        def run(params, key):
            rngs = {"dropout": key}
            logits = model.apply({"params": params}, images, train=True, rngs=rngs)
            return jnp.sum(jnp.square(logits))

        # This generator compiles faster than the default.
        return lambda seed=0: run(params, jax.random.key(seed, impl="unsafe_rbg"))

    return training


def assert_same(found, expected, name):
    # NumPy: each operation on JAX arrays would be compiled as a separate program.
    (loss, gradients), (expected_loss, expected_gradients) = jax.device_get(
        (found, expected)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients))
    difference = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), gradients, expected_gradients
    )
    assert max(jax.tree.leaves(difference)) < 2e-6 * largest, name


def test_ways_to_run_the_blocks_agree_in_drops_and_gradients(training):
    loop = training(**DROP)
    expected = loop()
    np.testing.assert_array_equal(loop()[0], expected[0])
    assert jnp.abs(loop(seed=1)[0] - expected[0]) > 1e-3
    for name, fields in WAYS.items():
        assert_same(training(**DROP, **fields)(), expected, name)


def test_ways_to_run_the_blocks_agree_without_drops(training):
    loop = training()
    expected = loop()
    np.testing.assert_array_equal(loop(seed=1)[0], expected[0])
    assert_same(training(scan=True)(), expected, "scan")


def test_the_tree_is_the_same_for_loop_and_scan(tiny):
    def params(**fields):
        key = jax.random.key(3, impl="unsafe_rbg")
        model = VisionTransformer(tiny(), **fields)
        return jax.jit(model.init)(key, jnp.zeros((1, 8, 6, 3)))

    scanned = params(scan=True, remat="full", attention="explicit")
    jax.tree.map(np.testing.assert_array_equal, params(), scanned)


def test_scan_traces_one_block_and_remat_recomputes_it(tiny, equations):
    def primitives(**fields):
        architecture = tiny(depth=3)
        model = VisionTransformer(architecture, **fields)
        images = jnp.zeros((1, 8, 6, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        jaxpr = jax.make_jaxpr(lambda p: model.apply(p, images))(params)
        return [equation.primitive.name for equation in equations(jaxpr.jaxpr)]

    loop, scan = primitives(), primitives(scan=True)
    assert "scan" not in loop
    assert scan.count("scan") == 1
    # The last block, of which the head reads one token, is traced separately.
    assert (loop.count("tanh"), scan.count("tanh")) == (3, 2)
    assert "remat2" not in loop + scan
    assert primitives(remat="full").count("remat2") == 3
    assert primitives(remat="full", scan=True).count("remat2") == 2


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({}, 1),
        ({"distillation_token": True, "registers": 2}, 2),
        ({"norm": "after_pool"}, 1),
        ({"pooling": "gap"}, 6),
        ({"pooling": "map"}, 6),
        ({"pooling": "cls_gap"}, 6),
    ],
)
def test_the_last_block_computes_only_what_the_head_reads(
    tiny, random_params, random_images, equations, fields, read
):
    architecture = tiny(**fields)
    model = VisionTransformer(architecture)
    params = {"params": random_params(architecture)}
    images = random_images(architecture)

    def logits(params, intermediates=()):
        result = model.apply(params, images, intermediates=intermediates)
        return result[0] if intermediates else result

    jaxpr = jax.make_jaxpr(logits)(params)
    products = [
        equation.outvars[0].aval.shape
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    hidden = [shape[1] for shape in products if shape[-1] == architecture.mlp_dim]
    total = architecture.num_tokens
    last = read + (architecture.pooling != "cls") * architecture.num_prefix_tokens
    assert hidden[:2] == [total, last]

    # Requesting all tokens makes it compute them, with the same logits and gradients.
    def value(params, **how):
        return jnp.sum(jnp.square(logits(params, **how)))

    found = jax.jit(jax.value_and_grad(value))(params)
    everything = partial(value, intermediates=("tokens",))
    expected = jax.jit(jax.value_and_grad(everything))(params)
    assert_same(found, expected, str(fields))


def test_bfloat16_reaches_every_product_and_spares_what_needs_float32(
    tiny, random_params, random_images, equations
):
    architecture = tiny(pooling="map", layer_scale=True, pre_logits=7, registers=2)
    model = VisionTransformer(architecture, dtype=jnp.bfloat16)
    images = random_images(architecture)
    initial = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    params = {"params": random_params(architecture)}
    logits, found = model.apply(
        params, images, intermediates=("tokens", "attention", "pooled", "pre_logits")
    )
    assert logits.dtype == jnp.float32
    assert found["attention"].dtype == jnp.float32
    for name in ("tokens", "pooled", "pre_logits"):
        assert found[name].dtype == jnp.bfloat16

    headless = VisionTransformer(tiny(num_classes=0), dtype=jnp.bfloat16)
    key = jax.random.key(0)
    features, _ = jax.eval_shape(headless.init_with_output, key, images)
    assert features.dtype == jnp.float32

    jaxpr = jax.make_jaxpr(lambda params: model.apply(params, images))(params).jaxpr
    products = [
        equation.invars[0].aval.dtype
        for equation in equations(jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    # All except the head's: patches, 8 in each of 2 blocks and the pooling, pre_logits.
    assert products.count(jnp.float32) == 1
    assert products.count(jnp.bfloat16) == 1 + 8 * 3 + 1
    assert_softmax_and_norms_in_float32(equations(jaxpr), softmaxes=3, norms=6)


@pytest.mark.parametrize(
    ("name", "softmaxes", "norms"),
    [("block", 1, 2), ("attention", 1, 0), ("mlp", 0, 0), ("map_head", 1, 1)],
)
def test_modules_in_bfloat16(name, softmaxes, norms, tiny, equations):
    block, layers = tiny(layer_scale=True).block, make_layers(jnp.bfloat16)
    module, count = {
        "block": (Block(block, layers), 1),
        "attention": (Attention(block.attention, layers), 2),
        "mlp": (Mlp(block.mlp, layers), 1),
        "map_head": (MapHead(block, layers), 1),
    }[name]
    tokens = [jnp.ones((2, 6, 16), jnp.bfloat16)] * count
    params = jax.eval_shape(module.init, jax.random.key(0), *tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output = jax.eval_shape(module.apply, params, *tokens)
    output = output[0] if isinstance(output, tuple) else output
    assert output.dtype == jnp.bfloat16
    jaxpr = jax.make_jaxpr(module.apply)(params, *tokens).jaxpr
    assert_softmax_and_norms_in_float32(equations(jaxpr), softmaxes, norms)


def assert_softmax_and_norms_in_float32(equations, softmaxes, norms):
    dtypes = {"exp": [], "rsqrt": []}
    for equation in equations:
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].append(equation.invars[0].aval.dtype)
    assert dtypes["exp"] == [jnp.float32] * softmaxes
    assert dtypes["rsqrt"] == [jnp.float32] * norms
