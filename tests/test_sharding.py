"""The mesh, and the sharding of arrays."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.models import Placement, abstract_params, architecture_from_variant
from vit_jax.models.attention import formulations
from vit_jax.models.attention.formulations import attend
from vit_jax.optim.chain import make_optimizer
from vit_jax.trees import path_name


@pytest.mark.parametrize(("asked", "devices"), [(-1, 8), (1, 1), (4, 4)])
def test_the_mesh_has_the_devices_that_were_asked_for(asked, devices):
    mesh = sharding.make_mesh(asked)
    assert dict(mesh.shape) == {"data": devices, "fsdp": 1, "tensor": 1}
    assert mesh.size == devices


@pytest.mark.parametrize("asked", [9, 0, -2])
def test_a_mesh_of_more_devices_than_there_are_is_refused(asked):
    with pytest.raises(UserError, match=f"mesh.data={asked}, but there are 8 cpu"):
        sharding.make_mesh(asked)


def test_batches_are_spread_in_order():
    mesh = sharding.make_mesh()
    rows = np.arange(16, dtype=np.int32)
    placed = sharding.place({"label": rows}, mesh)["label"]
    np.testing.assert_array_equal(placed, rows)
    shards = {
        shard.index[0].start or 0: shard.data for shard in placed.addressable_shards
    }
    assert {start: data.tolist() for start, data in shards.items()} == {
        2 * i: [2 * i, 2 * i + 1] for i in range(8)
    }


@pytest.mark.parametrize(
    ("sizes", "parts"), [((2, 4, 1), 8), ((1, 4, 2), 4), ((2, 2, 2), 4), ((1, 1, 8), 1)]
)
def test_batches_are_spread_over_data_and_fsdp(sizes, parts):
    mesh = sharding.make_mesh(*sizes)
    assert sharding.batch_parts(mesh) == parts
    placed = sharding.place({"label": np.arange(16, dtype=np.int32)}, mesh)["label"]
    assert {shard.data.size for shard in placed.addressable_shards} == {16 // parts}


def test_replicated_arrays_are_complete_on_every_device():
    array = jax.device_put(np.arange(3.0), sharding.replicated(sharding.make_mesh()))
    assert len(array.addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in array.addressable_shards)


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ((-1, 2, 2), (2, 2, 2)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, 1, -1), (2, 1, 4)),
        ((1, 2, 2), (1, 2, 2)),
    ],
)
def test_one_axis_takes_the_remaining_devices(asked, shape):
    assert tuple(sharding.make_mesh(*asked).shape.values()) == shape


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((-1, 3, 1), "mesh.data=-1 × mesh.fsdp=3, but there are 8 cpu devices; .*"),
        (
            (4, 4, 1),
            "mesh.data=4 × mesh.fsdp=4, .* pass mesh.data=4 × mesh.fsdp=2 or",
        ),
        ((-1, 1, -1), "mesh.data=-1 × mesh.tensor=-1, but .* or -1 for one of them"),
        ((1, 0, 1), "mesh.fsdp=0, but there are"),
    ],
)
def test_impossible_meshes_are_refused_with_possible_ones(asked, text):
    with pytest.raises(UserError, match=text):
        sharding.make_mesh(*asked)


def test_every_large_parameter_has_a_sharding():
    mesh = sharding.make_mesh(2, 2, 2)
    expected = {
        "blocks_00/attention/query/kernel": ("fsdp", "tensor"),
        "blocks_00/attention/query/bias": ("tensor", "fsdp"),
        "blocks_00/attention/out/kernel": ("tensor", "fsdp"),
        "blocks_00/attention/out/bias": ("fsdp",),
        "blocks_00/mlp/fc1/kernel": ("fsdp", "tensor"),
        "blocks_00/mlp/fc2/kernel": ("tensor", "fsdp"),
        "blocks_00/norm1/scale": ("fsdp",),
        "blocks_00/tokens_mlp/fc1/kernel": ("fsdp", "tensor"),
        "map_head/attention/value/kernel": ("fsdp", "tensor"),
        "map_head/mlp/fc2/kernel": ("tensor", "fsdp"),
        "patch_embed/kernel": (None, None, None, "fsdp"),
        "trunk/block1/unit1/conv2/kernel": (None, None, None, "fsdp"),
        "trunk/conv_root/kernel": (None, None, None, "fsdp"),
        "pos_embed": (None, None, None, "fsdp"),
        "head/kernel": ("fsdp", "tensor"),
        "head/bias": ("tensor",),
        "cls": (),
    }
    seen = set()
    for name, fields in {
        "B/16": {"pooling": "map", "image_size": (224, 224)},
        "B/32": {"image_size": (224, 224)},
        "R50+B/16": {"image_size": (224, 224)},
        "Mixer-B/16": {"image_size": (224, 224)},
    }.items():
        architecture = architecture_from_variant(name, num_classes=1000, **fields)
        params = abstract_params(architecture)
        # The optimiser keeps state for each, in its own tree.
        tree = {"params": params, "moments": (params, {"of": params})}
        where = sharding.shardings(tree, mesh)
        assert where["moments"] == (where["params"], {"of": where["params"]})
        for path, leaf in jax.tree.leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = where["params"]
            for key in path:
                found = found[key.key]
            spec = tuple(map(_names, found.spec))
            spec = spec[0] if len(spec) == 1 else tuple(n and n[0] for n in spec)
            if name in expected:
                assert spec == expected[name], name
                seen.add(name)
            whole = found.is_fully_replicated
            assert not whole or leaf.size < 10_000, name
    assert seen == set(expected)


def _names(axis):
    return (axis,) if isinstance(axis, str) else axis


def test_dimensions_that_an_axis_does_not_divide_are_replicated():
    mesh = sharding.make_mesh(1, 2, 4)
    shapes = {
        "head": {
            "kernel": jax.ShapeDtypeStruct((16, 10), np.float32),
            "bias": jax.ShapeDtypeStruct((10,), np.float32),
        }
    }
    where = sharding.shardings(shapes, mesh)["head"]
    assert where["kernel"].shard_shape((16, 10)) == (8, 10)
    assert where["bias"].is_fully_replicated


def test_a_bias_that_two_axes_do_not_divide_uses_fsdp_alone():
    mesh = sharding.make_mesh(1, 4, 2)
    for size, part in [(16, 2), (12, 3), (7, 7)]:
        bias = jax.ShapeDtypeStruct((size,), np.float32)
        (where,) = jax.tree.leaves(sharding.shardings({"fc1": {"bias": bias}}, mesh))
        assert where.shard_shape((size,)) == (part,)


def test_matrices_are_gathered_in_the_compute_dtype_but_vectors_are_not():
    placement = sharding.MeshPlacement(sharding.make_mesh(1, 4, 2))
    shapes = {"fc1": {"kernel": (16, 32), "bias": (32,)}, "norm": {"scale": (16,)}}
    params = {
        layer: {name: jnp.ones(shape) for name, shape in arrays.items()}
        for layer, arrays in shapes.items()
    }
    found = placement.gather(params, jnp.bfloat16)
    assert found["fc1"]["kernel"].dtype == jnp.bfloat16
    assert found["fc1"]["bias"].dtype == found["norm"]["scale"].dtype == jnp.float32
    # Complete, except for the dimensions spread over tensor.
    assert found["norm"]["scale"].sharding.is_fully_replicated
    assert found["fc1"]["bias"].sharding.shard_shape((32,)) == (16,)
    assert found["fc1"]["kernel"].sharding.shard_shape((16, 32)) == (16, 16)


@pytest.mark.parametrize(
    ("model", "fsdp", "tensor"),
    [("H/14", n, 1) for n in (16, 64, 256)]
    + [("G/14", 16, 1), ("G/14", 64, 1), ("G/14", 128, 2)],
)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_memory_per_chip_falls_with_the_number_of_chips(model, fsdp, tensor, optimizer):
    mesh = AbstractMesh((1, fsdp, tensor), sharding.AXES)
    # No number of chips divides the number of ImageNet-21k's classes.
    architecture = architecture_from_variant(
        model, num_classes=21_843, image_size=(224, 224)
    )
    params = abstract_params(architecture)
    config = default_config()
    config.optimizer = optimizer
    state = jax.eval_shape(make_optimizer(config, params).init, params)
    for tree in (params, state):
        where = sharding.shardings(tree, mesh)
        placed = jax.tree.map(
            lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
            tree,
            where,
        )
        whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        ratio = sharding.bytes_per_device(placed) * mesh.size / whole
        assert 1 <= ratio < 1.05


def test_bytes_are_those_of_one_device():
    mesh = sharding.make_mesh(2, 2, 2)
    shapes = {
        "fc1": {"kernel": (16, 32), "bias": (32,)},
        "norm": {"scale": (16,)},
    }
    tree = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        sharding.shardings(tree, mesh),
    )
    assert sharding.bytes_per_device(placed) == 4 * (16 * 32 // 4 + 32 // 4 + 16 // 2)


def test_attention_kernels_run_on_each_devices_own_examples_and_heads():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placement = sharding.MeshPlacement(mesh)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(8, 20, 4, 64)).astype(np.float32) for _ in range(3)]
    spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    placed = jax.device_put(arrays, spread)

    def loss(implementation, placement, *arrays):
        mixed, _ = attend(*arrays, implementation=implementation, placement=placement)
        return jnp.sum(jnp.sin(mixed))

    def gradients(*options):
        return jax.jit(jax.grad(partial(loss, *options), argnums=(0, 1, 2)))

    ours = gradients("pallas", placement)
    text = ours.lower(*placed).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    # Two of the eight examples, two of the four heads: 128 channels.
    text = ours.trace(*placed).lower(lowering_platforms=("tpu",)).as_text()
    assert re.search(r"tpu_custom_call.*tensor<2x20x128xf32>", text)
    expected = gradients("explicit", Placement())(*arrays)
    for one, other in zip(ours(*placed), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_kernel_fit_is_checked_for_one_devices_heads(monkeypatch):
    asked = []

    def nothing_fits(*sizes):
        asked.append(sizes)

    monkeypatch.setattr(formulations, "fits", nothing_fits)
    placement = sharding.MeshPlacement(sharding.make_mesh(data=4, tensor=2))
    tokens = jax.random.normal(jax.random.key(0), (8, 20, 6, 64))
    found, _ = attend(
        tokens, tokens, tokens, implementation="pallas", placement=placement
    )
    expected, _ = attend(tokens, tokens, tokens, implementation="explicit")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    kind = jax.devices()[0].device_kind
    assert set(asked) == {(20, 192, 3, jnp.dtype("float32"), kind)}


def test_several_axes_may_share_a_side_of_a_slice():
    class Chip:
        """A chip of a 4 × 4 × 4 slice of TPU v4, with JAX's attributes."""

        platform, device_kind, core_on_chip = "tpu", "TPU v4", 0
        process_index = slice_index = 0

        def __init__(self, number):
            self.id = number
            self.coords = [number % 4, number // 4 % 4, number // 16]

    chips = [Chip(number) for number in range(64)]
    mesh = sharding.make_mesh(2, 32, 1, devices=chips)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 32, "tensor": 1}
    assert {chip.id for chip in mesh.devices.flat} == set(range(64))


@pytest.mark.parametrize(
    "path", ["blocks_00/mlp/gate/kernel", "blocks_00/attention/query/lora_c", "x/embed"]
)
def test_a_matrix_that_no_row_names_is_rejected(path):
    tree = np.zeros((16, 8))
    for name in reversed(path.split("/")):
        tree = {name: tree}
    tree |= {"cls": np.zeros((1, 1, 8)), "norm": {"scale": np.zeros(8)}}
    with pytest.raises(UserError, match=rf"{path} \[16, 8\] over the mesh"):
        sharding.check_known(tree)
    last = path.split("/")[-1]
    rules = ((f".*{last}", ("fsdp", None)),)
    sharding.check_known(tree, rules)
    mesh = sharding.make_mesh(1, 8, 1)
    leaves = jax.tree.leaves_with_path(sharding.shardings(tree, mesh, rules))
    found = {path_name(path): where.spec for path, where in leaves}
    assert found[path] == PartitionSpec("fsdp", None)
