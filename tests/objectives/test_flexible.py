"""Drawn patch sizes: the same everywhere, and used by every objective that can."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.flexible import at_patch_size, fixed, fixed_params
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.objectives.flexible import DrawnSizes
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up

FLEXIBLE = {
    "flexible.patch_sizes": (4, 8, (2, 4)),
    "flexible.kernel": (3,),
    "flexible.grid": (3,),
    "eval_every": 0,
    "mesh.data": 1,
    "model.depth": 1,
}
FOUR = DrawnSizes(((16, 16), (8, 8), (4, 4), (32, 16)), (1, 1, 1, 1), seed=3)


def test_the_sizes_of_a_seed_never_change():
    # Made by hand from PCG64's raw bits; a run that was begun continues with them.
    assert [FOUR.sizes.index(FOUR(step)) for step in range(20)] == EXPECTED
    bits = np.random.PCG64((3, 0x666C6578, 19)).random_raw()
    assert EXPECTED[19] == bits >> 62  # four equal parts of 2⁶⁴


EXPECTED = [3, 3, 1, 3, 0, 1, 2, 0, 3, 3, 2, 2, 0, 1, 1, 3, 2, 3, 2, 2]


def test_every_step_draws_by_its_number_alone():
    forwards = [FOUR(step) for step in range(50)]
    assert [FOUR(step) for step in reversed(range(50))] == forwards[::-1]
    other = DrawnSizes(FOUR.sizes, FOUR.frequencies, seed=4)
    assert [other(step) for step in range(50)] != forwards


@pytest.mark.parametrize("frequencies", [(1, 1, 1, 1), (1, 2, 4, 1)])
def test_sizes_are_drawn_as_often_as_they_should(frequencies):
    drawn = DrawnSizes(FOUR.sizes, frequencies, seed=0)
    counts = np.zeros(4)
    for step in range(4000):
        counts[drawn.sizes.index(drawn(step))] += 1
    shares = np.array(frequencies) / sum(frequencies)
    deviations = np.sqrt(4000 * shares * (1 - shares))
    assert (np.abs(counts - 4000 * shares) < 3.5 * deviations).all()


def test_the_largest_program_comes_first():
    assert FOUR.choices == ((4, 4), (8, 8), (16, 16), (32, 16))


def context(objective, state, choice):
    return Context(objective.extra(), state, jnp.int32(0), choice)


def batch_of(setup):
    rng = np.random.default_rng(0)
    rows = setup.config.batch_size
    columns = setup.abstract_batch()
    batch = {
        name: rng.integers(0, 256, x.shape, dtype=np.uint8)
        for name, x in columns.items()
        if x.dtype == np.uint8
    }
    batch["label"] = rng.integers(0, 10, rows).astype(np.int32)
    batch["mask"] = np.linspace(0.5, 1, rows).astype(np.float32)
    batch["bad"] = np.zeros(rows, np.int32)
    return batch


def random_params(setup, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        setup.param_shapes,
    )


def test_the_loss_of_a_step_is_that_of_a_fixed_model(tiny_config):
    setup = set_up(tiny_config(**FLEXIBLE))
    params, batch = jax.tree.map(jnp.asarray, (random_params(setup), batch_of(setup)))
    objective = setup.objective
    assert objective.choices == ((2, 4), (4, 4), (8, 8))
    size = (2, 4)

    @jax.jit
    def step(params):
        return objective.loss(
            params, batch, jax.random.key(0), context(objective, (), size)
        )[0]

    sums = {name: float(x / w) for name, (x, w) in step(params).items()}
    other = at_patch_size(setup.architecture, size)
    images = setup.preprocessing.normalize(jnp.asarray(batch["image"]))
    logits = jax.jit(build(fixed(other)).apply)(
        {"params": fixed_params(params, other)}, images
    )
    logits = np.asarray(logits, np.float64)
    losses = np.log(np.exp(logits).sum(axis=1))
    losses -= logits[np.arange(len(logits)), np.asarray(batch["label"])]
    mask = np.asarray(batch["mask"])
    assert sums["loss"] == pytest.approx((losses * mask).sum() / mask.sum(), rel=1e-5)
    assert (sums["patch_height"], sums["patch_width"]) == (2.0, 4.0)


PLAIN = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
    "learning_rate": 1.0,
}
EIGHT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2}


def test_eight_devices_make_the_update_of_one(tiny_config, make_teacher):
    teacher = make_teacher(image_size=(16, 16))
    found = []
    for mesh in ({}, EIGHT | {"model.scan": True, "model.remat": "full"}):
        config = tiny_config(**FLEXIBLE | PLAIN | mesh, objective="distillation")
        config.objective_options = ConfigDict(
            {"teachers": teacher, "kind": "hard", "alpha": 0.5}
        )
        setup = set_up(config)
        where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
        params = random_params(setup)
        state = jax.device_put(setup.new_state(params), where)
        batch = batch_of(setup)
        batch = {name: batch[name] for name in setup.columns}
        step = setup.train_step((8, 8))
        state, metrics = step(state, sharding.place(batch, setup.mesh), setup.extra())
        assert float(metrics["patch_height"]) == 8.0
        found.append((jax.device_get(state.params), metrics["loss"]))
    kernel = state.params["patch_embed"]["kernel"]
    assert kernel.shape == (3, 3, 3, 16)
    (one, loss), (eight, other) = found
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)
    assert np.abs(one["pos_embed"] - params["pos_embed"]).max() > 1e-5


@pytest.mark.parametrize("name", ["distillation", "linear_probe", "self_distillation"])
def test_other_objectives_use_the_drawn_size(tiny_config, make_teacher, name):
    options = {"linear_probe": {}, "self_distillation": SMALL_DINO}.get(name)
    if options is None:
        options = {"teachers": make_teacher(), "kind": "matching"}
    values = FLEXIBLE | {"flexible.patch_sizes": (2, 4), "flexible.kernel": (2,)}
    config = tiny_config(**values, objective=name)
    config.objective_options = ConfigDict(options)
    setup = set_up(config)
    step = setup.train_step((2, 2)).trace(*setup.abstract_arguments())
    # 16 patches and the class token, as many as no model has at its usual 4 pixels.
    assert re.search(r"f32\[\d+,17,16\]", str(step.jaxpr))


SMALL_DINO = {
    "out_dim": 16,
    "hidden_dim": 8,
    "bottleneck_dim": 8,
    "local_crops_number": 1,
    "local_crops_size": 4,
    "freeze_last_layer": 0,
}


def problems(config):
    with pytest.raises(UserError) as error:
        set_up(config)
    return str(error.value)


@pytest.mark.parametrize("name", ["masked_autoencoding", "masked_patches"])
def test_objectives_that_cannot_are_refused_by_name(tiny_config, name):
    said = problems(tiny_config(**FLEXIBLE, objective=name))
    assert (
        f"flexible.patch_sizes has no effect: the objective {name} computes the model "
        "at one patch size; leave it out, or choose from classification, distillation, "
        "linear_probe, self_distillation"
    ) in said
    assert {name for name, kind in OBJECTIVES.items() if kind.flexible} == {
        *("classification", "distillation", "linear_probe", "self_distillation"),
    }


def test_small_views_must_fit_all_sizes(tiny_config):
    config = tiny_config(**FLEXIBLE, objective="self_distillation")
    config.objective_options = ConfigDict(SMALL_DINO)
    assert (
        "flexible.patch_sizes: small views of 4×4 pixels cannot be cut into patches of "
        "8 (nearest: 4); set objective_options.local_crops_size to a multiple"
    ) in problems(config)


def test_kinds_of_models_that_cannot_are_refused(tiny_config):
    values = {"model.num_heads": 0, "flexible.patch_sizes": (4, 8)}
    mixer = tiny_config(**values, **{"model.variant": "Mixer-S/4"})
    assert "(4, 8): an MLP-Mixer mixes a fixed number of patches" in problems(mixer)
    values |= {"model.variant": "R26+S/4", "image_size": (32,), "model.width": 32}
    values |= {"model.num_heads": 2, "model.depth": 1, "model.variant": "R26+S/32"}
    hybrid = tiny_config(**values)
    assert "a ResNet in front of the patches fixes their size" in problems(hybrid)
