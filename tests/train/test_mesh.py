"""One step on every kind of mesh: numbers of one device, intended collectives."""

import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.train.evaluation import Evaluations
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.programs import build
from vit_jax.train.setup import set_up
from vit_jax.train.start import initial_state
from vit_jax.train.state import to_items

VALUES = {
    # With a learning rate of 1 the parameters' difference is the gradient.
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
    "learning_rate": 1.0,
    "model.num_heads": 4,
    "augment.train": "resize",
}


def mesh(data=1, fsdp=1, tensor=1):
    return {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}


WAYS = {
    "one": mesh(),
    "data": mesh(8),
    "fsdp": mesh(fsdp=8),
    "tensor": mesh(tensor=4),
    "fsdp, attention recomputed": mesh(fsdp=4) | {"model.remat": "attention"},
    "fsdp and tensor, accumulated": mesh(fsdp=4, tensor=2) | {"accum_steps": 2},
    "all three, scanned": mesh(2, 2, 2)
    | {"model.scan": True, "model.remat": "full", "accum_steps": 2},
    "data and fsdp, dots kept": mesh(2, 4) | {"model.remat": "dots"},
    "data and tensor, dots offloaded": mesh(2, tensor=2) | {"model.remat": "offload"},
}


@dataclasses.dataclass
class Ran:
    """The result of a step from random parameters."""

    setup: object
    lowered: str
    compiled: str
    gradients: dict
    metrics: dict

    def collectives(self, kind):
        """Returns a kind of collective's result shapes, one list per collective."""
        found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", self.compiled)
        return [
            [
                tuple(int(n) for n in dims.split(",") if n)
                for dims in re.findall(r"\w+\[([\d,]*)\]", text)
            ]
            for text in found
        ]


_RAN = {}


@pytest.fixture
def ran(tiny_config):
    """Returns a function that runs a named setting; each is compiled once."""

    def run(way):
        if way not in _RAN:
            _RAN[way] = _run(tiny_config(**VALUES, **WAYS[way]))
        return _RAN[way]

    return run


def _run(config):
    setup = set_up(config)
    rng = np.random.default_rng(7)
    abstract = setup.abstract_state()
    # All random: with the zero head of a new model most gradients are zero.
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        abstract.params,
    )
    rows = config.batch_size
    batch = {
        "image": rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
        "mask": np.ones(rows, np.float32),
        "bad": np.zeros(rows, np.int32),
    }
    where = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.device_put(setup.new_state(params), where)
    lowered = setup.lower()
    compiled = lowered.compile()
    state, metrics = compiled(state, sharding.place(batch, setup.mesh))
    for leaf, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves(where), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)
    gradients = jax.tree.map(np.subtract, params, jax.device_get(state.params))
    texts = lowered.as_text(), compiled.as_text()
    return Ran(setup, *texts, gradients, jax.device_get(metrics))


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_every_mesh_gives_the_gradients_of_one_device(ran, way):
    one, other = ran("one"), ran(way)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one.gradients))
    for x, y in zip(
        jax.tree.leaves(other.gradients), jax.tree.leaves(one.gradients), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * largest)
    for name in one.metrics:
        np.testing.assert_allclose(other.metrics[name], one.metrics[name], rtol=1e-5)


def test_adapters_on_a_mesh(tiny_config):
    lora = {"lora.rank": 4, "lora.targets": "all", "pretrained": "weights"}
    values = VALUES | lora | {"model.depth": 1}
    one = _run(tiny_config(**values, **mesh()))
    other = _run(tiny_config(**values, **mesh(2, 2, 2), accum_steps=2))
    abstract = other.setup.abstract_state().params["blocks_00"]
    found = {
        f"{name}/{matrix}": tuple(abstract[part][name][matrix].sharding.spec)
        for part, name in (("attention", "query"), ("mlp", "fc2"))
        for matrix in ("lora_a", "lora_b")
    }
    assert found == {
        "query/lora_a": ("fsdp", None),
        "query/lora_b": (None, ("tensor", "fsdp")),
        "fc2/lora_a": (("tensor", "fsdp"), None),
        "fc2/lora_b": (None, "fsdp"),
    }
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one.gradients))
    for (path, x), (_, y) in zip(
        *map(jax.tree.leaves_with_path, (one.gradients, other.gradients)), strict=True
    ):
        trained = path[-1].key.startswith("lora") or path[0].key == "head"
        assert np.any(x) == trained
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * largest)


def test_a_head_on_class_token_and_patches_on_a_mesh(tiny_config):
    values = VALUES | {"model.pooling": "cls_gap"}
    one = _run(tiny_config(**values, **mesh()))
    other = _run(tiny_config(**values, **mesh(2, 2, 2), accum_steps=2))
    kernel = other.setup.abstract_state().params["head"]["kernel"]
    width = one.setup.model.architecture.width
    assert kernel.shape == (2 * width, 10)
    assert kernel.sharding.shard_shape(kernel.shape) == (width, 5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one.gradients))
    assert np.abs(one.gradients["head"]["kernel"]).min(axis=1).max() > 1e-3 * largest
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * largest),
        other.gradients,
        one.gradients,
    )
    np.testing.assert_allclose(other.metrics["loss"], one.metrics["loss"], rtol=1e-6)


def test_one_device_has_neither_constraints_nor_collectives(ran):
    one = ran("one")
    assert "sharding_constraint" not in one.lowered
    for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert not one.collectives(kind)


def test_constraints_are_in_the_lowered_text(ran):
    spread = re.compile(r"sharding_constraint .*?<@mesh, \[(.*?)\]>")
    found = set(spread.findall(ran("all three, scanned").lowered))
    batch = '{"data", "fsdp"}'
    assert f"{batch}, {{}}, {{}}" in found  # tokens
    assert f'{batch}, {{}}, {{"tensor"}}, {{}}' in found  # heads
    assert f'{batch}, {{}}, {{"tensor"}}' in found  # hidden units
    assert '{"fsdp"}, {"tensor"}' in found  # block parameters as stored
    assert '{}, {"tensor"}' in found  # and as computed with


def test_data_parallelism_only_sums_gradients(ran):
    data = ran("data")
    assert data.collectives("all-reduce")
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert not data.collectives(kind)


@pytest.mark.parametrize("way", ["fsdp", "all three, scanned"])
def test_fsdp_gathers_a_matrix_at_a_time_and_stores_shards(ran, way):
    fsdp = ran(way)
    params = fsdp.setup.abstract_state().params
    largest = max(x.size for x in jax.tree.leaves(params))
    gathered = fsdp.collectives("all-gather")
    assert gathered
    for shapes in gathered:
        assert sum(map(math.prod, shapes)) <= largest
    # Parameters enter and leave as shards.
    entry = fsdp.compiled[fsdp.compiled.index("entry_computation_layout") :]
    inputs, outputs = entry[: entry.index("\n")].split("->")
    parts = fsdp.setup.mesh.shape["fsdp"]
    parts_of_hidden = fsdp.setup.mesh.shape["tensor"]
    shard, whole = f"f32[{16 // parts},{32 // parts_of_hidden}]", "f32[16,32]"
    for side in (inputs, outputs):
        assert shard in side
        assert whole not in side


def test_fsdp_spreads_gradients_as_soon_as_they_are_summed(ran):
    fsdp = ran("fsdp")
    spread = r'sharding_constraint .*<@mesh, \[{"fsdp"}, {}\]> : tensor<16x32xf32>'
    # Of this matrix in each of two blocks: as it is stored, in both passes, and its
    # gradient.
    assert len(re.findall(spread, fsdp.lowered)) == 2 * 3
    # A sum of which a device keeps its part is one reduce-scatter on TPU and GPU; for
    # the CPU XLA leaves two operations.
    summed = [s for shapes in fsdp.collectives("all-reduce") for s in shapes]
    scattered = fsdp.compiled.count("reduce-scatter(")
    assert scattered or (
        summed.count((16, 32)) == 2 and "dynamic-slice" in fsdp.compiled
    )


def test_fsdp_gathers_again_in_the_backward_pass(ran):
    # One barrier per block, after which its parameters are gathered once more.
    assert ran("data").lowered.count("optimization_barrier") == 0
    assert ran("fsdp").lowered.count("optimization_barrier") == 2
    # So each matrix is complete twice, and at no other time.
    whole = r"sharding_constraint .*<@mesh, \[{}, {}\]> : tensor<16x32xf32>"
    assert len(re.findall(whole, ran("fsdp").lowered)) == 2 * 2


def test_tensor_parallelism_sums_tokens_and_gathers_no_parameters(ran):
    tensor = ran("tensor")
    assert not tensor.collectives("all-gather")
    assert not tensor.collectives("all-to-all")
    # Matrices of tokens: 5 or 1 of each of 16 images, 16 channels (models/cpu.py).
    summed = [s for shapes in tensor.collectives("all-reduce") for s in shapes]
    # In each of two blocks after attention and after the MLP; in the backward pass
    # before both, where attention has three projections. Of the last block only key and
    # value are of all tokens.
    assert summed.count((80, 16)) == (2 + 1 + 3) + 2
    assert summed.count((16, 16)) == 2 + 1 + 1


def test_offloaded_products_are_in_host_memory(tiny_config):
    # The text lowered for the CPU does not show it: its memory is the host's.
    def traced(remat):
        setup = set_up(tiny_config(**mesh(), **{"model.remat": remat}))
        arguments = setup.abstract_state(), setup.abstract_batch()
        return str(setup.train_step().trace(*arguments).jaxpr)

    assert "MemorySpace.Host" in traced("offload")
    assert "MemorySpace.Host" not in traced("dots")


def test_a_mesh_may_have_only_the_axis_data(tiny_config):
    # A mesh like that of external measurement scripts.
    devices = np.array(jax.devices())
    only_data = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    fn, arguments = build(tiny_config(), only_data)
    text = fn.lower(*arguments).as_text()
    assert '{"data"}, {}, {}' in text
    state, batch = arguments
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
    assert batch["image"].sharding.shard_shape((16, 8, 8, 3)) == (2, 8, 8, 3)


def test_a_new_state_is_created_sharded_with_the_same_values(tiny_config, tmp_path):
    values = {"model.num_heads": 4, "momentum_dtype": "bfloat16"}
    states = []
    for sizes in (mesh(2, 2, 2), mesh(1)):
        setup = set_up(tiny_config(**values, **sizes))
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            states.append(initial_state(setup, checkpoints, None))
    spread, whole = states
    for state in (spread.params, spread.opt_state[1].mu, spread.opt_state[1].nu):
        kernel = state["blocks_01"]["mlp"]["fc2"]["kernel"]
        assert kernel.shape == (32, 16)
        assert {s.data.shape for s in kernel.addressable_shards} == {(16, 8)}
    assert spread.opt_state[1].mu["head"]["kernel"].dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)


def test_a_checkpoint_can_be_restored_on_another_mesh(tiny_config, tmp_path):
    setup = set_up(tiny_config(**mesh(fsdp=8)))
    state = jax.tree.map(
        lambda x: jax.device_put(
            np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype),
            x.sharding,
        ),
        setup.abstract_state(),
    )
    description = Description(
        setup.architecture, setup.preprocessing, (), setup.config.to_dict(), 3
    )
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, to_items(state), description)
        checkpoints.wait()
        for sizes in (mesh(fsdp=8), mesh(8)):
            other = set_up(tiny_config(**sizes))
            found = initial_state(other, checkpoints, None)
            for x, y, where in zip(
                jax.tree.leaves((found.params, found.opt_state)),
                jax.tree.leaves((state.params, state.opt_state)),
                jax.tree.leaves(
                    (other.abstract_state().params, other.abstract_state().opt_state)
                ),
                strict=True,
            ):
                np.testing.assert_array_equal(x, y)
                assert x.sharding == where.sharding


def test_a_run_continues_on_another_mesh_with_other_reports(tiny_config, tmp_path):
    values = {"checkpoint_every": 2, "log_every": 4, "eval_split": "test[:50]"}
    whole = tiny_config(**values, **mesh(2))
    expected = train_and_evaluate(whole, str(tmp_path / "whole"))
    first = tiny_config(**values, **mesh(fsdp=4))
    train_and_evaluate(first, str(tmp_path / "moved"))
    # Simulates an interruption after two steps.
    shutil.rmtree(tmp_path / "moved/checkpoints/4")
    (tmp_path / "moved/metrics.jsonl").write_text("")
    values |= {"log_every": 1, "eval_every": 3, "eval_batch_size": 16}
    second = tiny_config(**values, **mesh(2), accum_steps=2)
    found = train_and_evaluate(second, str(tmp_path / "moved"))
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert found == expected
    lines = (tmp_path / "moved/metrics.jsonl").read_text().splitlines()
    steps = [(line["step"], line["split"]) for line in map(json.loads, lines)]
    assert steps == [(3, "train"), (3, "eval"), (4, "train"), (4, "eval")]


def test_evaluation_does_not_move_the_parameters(tiny_config, tmp_path):
    numbers = []
    for sizes in (mesh(2, 2, 2), mesh(1)):
        setup = set_up(tiny_config(**sizes, **{"eval_split": "test[:50]"}))
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            state = initial_state(setup, checkpoints, None)
        key = jax.random.key(0)
        head = jax.random.normal(key, (16, 10))
        params = state.params | {"head": state.params["head"] | {"kernel": head}}
        where = sharding.shardings(params, setup.mesh)
        evaluations = Evaluations(setup, open_dataset("digits").split("test[:50]"))
        last = setup.config.total_steps
        numbers.append(evaluations.measure(last, jax.device_put(params, where), iter))
    assert numbers[0]["examples"] == 50
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            mesh(tensor=4, data=2),
            r"mesh.tensor=4 must divide the model's num_heads=2: with 8 devices, use "
            r"mesh.data=4 × mesh.tensor=2 or ",
        ),
        (
            mesh(fsdp=3, data=2) | {"batch_size": 18},
            r"mesh.fsdp=3 must divide the model's width=16: with 6 devices, use "
            r"mesh.data=3 × mesh.fsdp=2 or mesh.data=6 or ",
        ),
        (
            mesh(fsdp=-1, tensor=2) | {"batch_size": 9, "accum_steps": 3},
            r"batch_size=9 must be divisible by 4 devices × accum_steps=3 = 12: use "
            r"12$",
        ),
        (
            mesh(fsdp=8) | {"batch_size": 20},
            r"batch_size=20 must .*: use 16 or 24, or mesh.data=1 × mesh.fsdp=4 × "
            r"mesh.tensor=2 or mesh.data=2 × mesh.fsdp=2 × mesh.tensor=2",
        ),
        (mesh(fsdp=0), r"mesh.fsdp=0: must be -1 \(all remaining devices\)"),
        (mesh(fsdp=-1, data=-1), r"mesh.data=-1 × mesh.fsdp=-1, but there are 8 cpu"),
    ],
)
def test_sizes_that_a_mesh_cannot_divide_are_rejected(tiny_config, values, text):
    with pytest.raises(UserError, match=r"has 1 problem\(s\)") as error:
        set_up(tiny_config(**values))
    assert re.search(text, str(error.value)), error.value
