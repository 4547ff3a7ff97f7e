from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.models import cpu
from vit_jax.models.layers import make_layers
from vit_jax.models.placement import Placement


def with_gradients(module: Any, shape=(3, 5, 16)):
    """Returns the output, and gradients of a weighted sum for all parameters and x."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = 2 + 3 * jax.random.normal(keys[0], shape)
    params = module.init(keys[1], x)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(keys[2], p.shape), params
    )

    def loss(params, x):
        y = module.apply(params, x)
        return jnp.sum(y * jax.random.normal(keys[2], y.shape)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, gradients


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        largest = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("shape", [(3, 5, 16), (7, 16)])
def test_layer_norm_equals_flax(shape):
    norms = cpu.LayerNorm(1e-6), nn.LayerNorm(1e-6)
    assert_close(*(with_gradients(norm, shape) for norm in norms))


def test_constant_tokens_have_no_variance():
    """Checks that rounding does not make the variance negative."""
    x = jnp.full((1, 2, 16), 1000.1)
    norm = cpu.LayerNorm(1e-6)
    y = jnp.asarray(norm.apply(norm.init(jax.random.key(0), x), x))
    assert bool(jnp.all(jnp.isfinite(y)))


def test_products_equal_flax():
    dense = (nn.Dense(7, dot_general=product) for product in (cpu.product, None))
    assert_close(*map(with_gradients, dense))


@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (2, 9, 7, 3)], ids=["even", "rest"])
def test_patches_equal_flax(shape):
    how = {"kernel_size": (4, 3), "strides": (4, 3), "padding": "VALID"}
    convolutions = (
        nn.Conv(7, conv_general_dilated=convolution, **how)
        for convolution in (cpu.patches, None)
    )
    assert_close(*(with_gradients(module, shape) for module in convolutions))


def test_kernels_gradients_sum_over_one_dimension_on_cpus():
    def summed(placement):
        """Counts dimensions that products sum over, less one, forward and backward."""
        module = make_layers(jnp.float32, placement).dense(7)
        text = str(jax.make_jaxpr(lambda: with_gradients(module))())
        return {part.split("]")[0].count(",") for part in text.split("(([")[1:]}

    here = sharding.MeshPlacement(sharding.make_mesh())
    assert summed(here) == {0}
    assert summed(Placement()) == {0, 1}


def test_the_devices_of_the_mesh_decide():
    def norm(placement, dtype):
        return type(make_layers(dtype, placement).layer_norm(epsilon=1e-6))

    here = sharding.MeshPlacement(sharding.make_mesh())
    assert norm(here, jnp.float32) is cpu.LayerNorm
    # If products are in bfloat16, none is in float32.
    assert norm(here, jnp.bfloat16) is nn.LayerNorm
    assert norm(Placement(), jnp.float32) is nn.LayerNorm
    plain = make_layers(jnp.float32)
    assert plain.dense(1) == nn.Dense(1, dtype=jnp.float32)
    assert plain.conv(1, (2, 2)) == nn.Conv(1, (2, 2), dtype=jnp.float32)
    conv = make_layers(jnp.float32, here).conv(1, (2, 2))
    assert conv.conv_general_dilated is cpu.patches
