"""Self-distillation: DINO's losses, gradients, schedules, and thirty steps."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.objectives import self_distillation as dino
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "dino.npz"
HEAD = dino.HEAD
CONFIG = {
    "objective": "self_distillation",
    "train_split": "train[:40]",  # ten steps of four images are an epoch
    "batch_size": 4,
    "total_steps": 30,
    "image_size": (16,),
    "eval_every": 0,
    "posemb_resize": "bicubic_torch",
    "augment.train": None,
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 24,
    "model.num_heads": 2,
    "model.channels": 3,
    "model.variant": "Ti/4",
    "model.gelu": "exact",
    "mesh.data": 1,
}
OPTIONS = {
    "out_dim": 24,
    "hidden_dim": 20,
    "bottleneck_dim": 8,
    "local_crops_number": 2,
    "local_crops_size": 8,
}
VIEWS = ("global_0", "global_1", "local_0", "local_1")
# The published optimiser, as in the golden file.
ADAMW = {
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-6,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "weight_decay_on": rf".*kernel|cls|pos_embed\w*|{HEAD}/last_layer/scale",
    "grad_clip_norm": 0.0,
    "grad_clip_parameter_norm": 0.3,
}
PUBLISHED = {
    "norm_last_layer": False,
    "teacher_temp": 0.07,
    "warmup_teacher_temp_epochs": 2,
    "momentum_teacher": 0.9,
}


@pytest.fixture
def setup_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**CONFIG, **dict(values)})
        config.objective_options = ConfigDict({**OPTIONS, **options})
        return set_up(config)

    return make


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def tree(arrays, prefix):
    """Returns the nested dictionary of the arrays whose names begin with a prefix."""
    found: dict = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            *folders, last = name.removeprefix(prefix).split("/")
            place = found
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = value
    return found


def batch_of(arrays, step):
    rows = arrays["rows"][step]
    counts = {
        "mask": np.ones(len(rows), np.float32),
        "bad": np.zeros(len(rows), np.int32),
    }
    return {name: arrays[name][rows] for name in VIEWS} | counts


def placed(setup, params):
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    return jax.device_put(setup.new_state(jax.tree.map(jnp.asarray, params)), where)


def assert_close(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)


def gradient(objective, params, batch):
    state = objective.init_state(params)

    def loss(params):
        context = Context((), state, jnp.int32(0), None)
        sums, additive = objective.loss(params, batch, jax.random.key(0), context)
        total, weight = sums["loss"]
        return total / weight, additive

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("fixed", [False, True])
def test_loss_and_gradients_are_those_of_torch(setup_of, golden, fixed):
    objective = setup_of(norm_last_layer=fixed).objective
    params, expected = tree(golden, "params/"), tree(golden, "grads/")
    if fixed:  # all lengths are 1 in the file
        del params[HEAD]["last_layer"]["scale"], expected[HEAD]["last_layer"]["scale"]
    (value, _), grads = gradient(
        objective, *jax.tree.map(jnp.asarray, (params, batch_of(golden, 0)))
    )
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-6)
    assert_close(grads, expected, 1e-5)


def test_thirty_steps_are_those_of_torch(setup_of, golden):
    """Compares losses, centres, student and teacher; the biases of keys are left out.

    They change no output, so their gradients are rounding errors, which AdamW enlarges.
    """
    setup = setup_of(ADAMW, **PUBLISHED)
    state = placed(setup, tree(golden, "params/"))
    step = setup.lower().compile()
    losses, centres = [], []
    for number in range(30):
        batch = sharding.place(batch_of(golden, number), setup.mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        centres.append(np.asarray(state.objective["centre"]))
    np.testing.assert_allclose(losses, golden["curve/loss"], rtol=1e-4)
    np.testing.assert_allclose(np.stack(centres), golden["curve/center"], atol=1e-4)
    teacher = {**state.objective["model"], HEAD: state.objective[HEAD]}
    for name, found in (("student", state.params), ("teacher", teacher)):
        expected = tree(golden, f"after/{name}/")
        for block in ("blocks_00", "blocks_01"):
            for both in (found, expected):
                del both[block]["attention"]["key"]["bias"]
        assert_close(jax.device_get(found), expected, 1e-4)
