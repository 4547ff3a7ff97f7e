"""Kinds of blocks: requirements and effects of a new row of the tables."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.models import Architecture, VisionTransformer, abstract_params
from vit_jax.models.blocks import GELU, MLPS, NORMS
from vit_jax.models.layers import make_layers
from vit_jax.weights.formats.known import FORMATS


class GatedMlp(nn.Module):
    """An MLP whose hidden units are multiplied by those of a third layer."""

    architecture: Any
    layers: Any
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, key=None):
        a, layers = self.architecture, self.layers
        gate = layers.dense(a.hidden, name="gate")(x)
        y = GELU[a.gelu](layers.dense(a.hidden, name="fc1")(x)) * gate
        return layers.dense(x.shape[-1], name="fc2")(y)


@pytest.fixture
def gated(monkeypatch, tiny):
    """Returns a function of fields: an architecture with a new kind of MLP."""
    monkeypatch.setitem(MLPS, "gated", GatedMlp)
    return lambda **fields: tiny(mlp_type="gated", **fields)


@pytest.fixture
def spread(monkeypatch):
    row = (r"gate/kernel", ("fsdp", "tensor"))
    monkeypatch.setattr(sharding, "PARAMETERS", (row, *sharding.PARAMETERS))


def test_another_kind_of_mlp_is_a_row(gated, tiny, random_params, random_images):
    architecture = gated(pooling="map")
    params, images = random_params(architecture), random_images(architecture)
    gates = [
        tree["mlp"]["gate"]
        for name, tree in params.items()
        if name.startswith("blocks_") or name == "map_head"
    ]
    assert len(gates) == 3
    logits = VisionTransformer(architecture).apply({"params": params}, images)
    for gate in gates:
        gate |= {"kernel": 0 * gate["kernel"], "bias": 0 * gate["bias"] + 1}
    opened = VisionTransformer(architecture).apply({"params": params}, images)
    assert jnp.abs(opened - logits).max() > 0.01
    for name, tree in params.items():
        if name.startswith("blocks_") or name == "map_head":
            del tree["mlp"]["gate"]
    plain = tiny(pooling="map")
    expected = VisionTransformer(plain).apply({"params": params}, images)
    np.testing.assert_allclose(opened, expected, atol=1e-6)


def test_another_kind_of_norm_is_a_row(monkeypatch, tiny, random_images):
    def rms(architecture, layers, name):
        return nn.RMSNorm(architecture.epsilon, layers.dtype, name=name)

    monkeypatch.setitem(NORMS, "rms", rms)
    architecture = tiny(norm_type="rms", pooling="map")
    shapes = abstract_params(architecture)
    norms = [shapes["norm"], shapes["map_head"]["norm"]]
    norms += [shapes[f"blocks_0{i}"][f"norm{j}"] for i in (0, 1) for j in (1, 2)]
    assert [set(norm) for norm in norms] == [{"scale"}] * 6
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    images = random_images(architecture)
    logits = VisionTransformer(architecture).apply({"params": params}, images)
    assert bool(jnp.isfinite(logits).all())


def test_an_unknown_kind_of_block_is_rejected(tiny):
    with pytest.raises(ValueError, match="mlp_type is 'gated', expected one of plain"):
        tiny(mlp_type="gated")
    with pytest.raises(ValueError, match="norm_type is 'rms', expected one of layer"):
        Architecture.from_dict(tiny().to_dict() | {"norm_type": "rms"})


def test_older_releases_can_read_models_they_can_compute(gated, tiny):
    # They reject names that they do not know.
    assert not {"mlp_type", "norm_type"} & tiny().to_dict().keys()
    fields = gated().to_dict()
    assert fields["mlp_type"] == "gated"
    assert "norm_type" not in fields
    assert Architecture.from_dict(fields) == gated()


def test_new_matrices_are_rejected_until_the_mesh_knows_them(gated):
    expected = r"how to shard blocks_00/mlp/gate/kernel \[16, 24\], "
    with pytest.raises(UserError, match=expected):
        sharding.check_known(abstract_params(gated()))


def test_new_matrices_are_sharded_by_their_row(
    gated, spread, random_params, random_images
):
    placement = sharding.MeshPlacement(sharding.make_mesh(2, 2, 2))
    architecture = gated()
    params = random_params(architecture)
    images = random_images(architecture, batch=4)
    sharding.check_known(params)
    where = sharding.shardings(params, placement.mesh)
    kernel = where["blocks_00"]["mlp"]["gate"]["kernel"]
    assert kernel.shard_shape((16, 24)) == (8, 12)

    @jax.jit
    def on_mesh(params, images):
        model = VisionTransformer(architecture, placement=placement)
        params = placement.gather_outside_blocks(params)
        return model.apply({"params": params}, images)

    logits = on_mesh(jax.device_put(params, where), images)
    expected = VisionTransformer(architecture).apply({"params": params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_without_names_for_a_block_say_so(format, gated, tiny):
    inexpressible = FORMATS[format].inexpressible
    plain = inexpressible(tiny())  # some formats have the exact GELU only
    added = [reason for reason in inexpressible(gated()) if reason not in plain]
    assert added == ["MLPs of the kind 'gated'"]


def test_the_record_of_a_block(tiny):
    block = tiny(gelu="exact", layernorm_epsilon=1e-5, layer_scale=True).block
    assert (block.norm.epsilon, block.norm.type) == (1e-5, "layernorm")
    assert (block.attention.num_heads, block.attention.qkv_bias) == (2, True)
    assert (block.mlp.hidden, block.mlp.gelu, block.mlp.type) == (24, "exact", "plain")
    assert block.layer_scale
    assert block == tiny(gelu="exact", layernorm_epsilon=1e-5, layer_scale=True).block


def test_layers_of_a_dtype(tiny):
    layers = make_layers(jnp.bfloat16)
    assert layers.dense(3).dtype == layers.conv(3, (1, 1)).dtype == jnp.bfloat16
    assert layers.layer_norm(epsilon=1e-6).dtype == jnp.bfloat16


def test_attention_pooling_has_biases_whatever_the_blocks_have(tiny):
    shapes = abstract_params(tiny(pooling="map", qkv_bias=False))
    for name in ("query", "key", "value"):
        assert set(shapes["map_head"]["attention"][name]) == {"kernel", "bias"}
        assert set(shapes["blocks_00"]["attention"][name]) == {"kernel"}
