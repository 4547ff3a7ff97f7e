"""How much arithmetic a program is said to ask for."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vit_jax import sharding
from vit_jax.train.flops import matmul_flops
from vit_jax.train.step import build, build_predict


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return matmul_flops(jax.make_jaxpr(function)(*arrays))


def test_products_count_two_a_multiplication():
    assert count(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    batched = partial(jnp.einsum, "bnhk,bmhk->bhnm")
    assert count(batched, (2, 3, 4, 5), (2, 6, 4, 5)) == 2 * 2 * 4 * 3 * 6 * 5
    assert count(jnp.add, (3, 5), (3, 5)) == 0


def test_a_loop_counts_as_often_as_it_runs():
    def repeated(x, weights):
        body = jax.checkpoint(lambda x, w: (jnp.sin(x @ w), None))
        return jax.lax.scan(body, x, weights)[0]

    once = 2 * 3 * 4 * 4
    assert count(repeated, (3, 4), (5, 4, 4)) == 5 * once
    # Backwards two more products of each, and the recomputed one.
    gradient = jax.grad(lambda *x: jnp.sum(repeated(*x)), argnums=(0, 1))
    assert count(gradient, (3, 4), (5, 4, 4)) == 5 * 4 * once


def test_of_branches_the_dearest_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert count(either, (4, 4)) == 2 * 4**3


def test_products_in_a_loop_of_unknown_length_are_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="length nobody knows"):
        count(until, (4, 4))
    harmless = jax.lax.while_loop
    assert count(lambda x: harmless(lambda x: x[0] < 1, jnp.sin, x), (4,)) == 0


def test_shards_add_up():
    mesh = sharding.make_mesh(data=4, fsdp=1, tensor=1)
    rows = PartitionSpec("data")
    product = jax.shard_map(
        jnp.dot, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert count(product, (8, 5), (5, 7)) == 2 * 8 * 5 * 7


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "expected"),
    [
        (1, "VALID", 1, 6 * 6 * 9),
        (3, "VALID", 1, 2 * 2 * 9),
        (1, "SAME", 1, 22 * 22),  # of 8 · 3 pairs on an axis 2 are with padding
        (1, "VALID", 2, 6 * 6 * 9 / 2),
    ],
)
def test_convolutions_count_what_lies_in_the_image(stride, padding, groups, expected):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    shapes = (2, 8, 8, 4), (3, 3, 4 // groups, 10)
    forward = count(convolve, *shapes)
    assert forward == 2 * 2 * expected * 4 * 10
    # Gradients of either argument take as many products, whatever their dilation.
    for argument in (0, 1):
        gradient = jax.grad(lambda *x: jnp.sum(convolve(*x) ** 2), argnums=argument)
        assert count(gradient, *shapes) == 2 * forward


def test_a_vision_transformer_counts_what_its_sizes_say(tiny_config):
    config = tiny_config(**{"model.attention": "explicit", "eval_batch_size": 8})
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    predict, arguments = build_predict(config, mesh)
    width, depth, hidden, tokens, classes, images = 16, 2, 32, 5, 10, 8
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    embed = 4 * (4 * 4 * 3) * width
    forward = 2 * images * (depth * block + embed + width * classes)
    assert matmul_flops(predict.trace(*arguments).jaxpr) == forward

    step, arguments = build(config, mesh)
    twice = 2 * 16 / images * forward  # both arguments' gradients, of 16 images
    embed_gradient = 2 * 16 * embed  # of the images there is none
    flops = matmul_flops(step.trace(*arguments).jaxpr)
    assert flops == 16 / images * forward + twice - embed_gradient


def test_a_kernel_is_refused():
    from jax.experimental import pallas

    def kernel(x, out):
        out[...] = x[...] @ x[...]

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    with pytest.raises(ValueError, match="attention 'explicit'"):
        count(pallas.pallas_call(kernel, out_shape=shape), (8, 8))
