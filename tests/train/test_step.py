"""The step's arithmetic: accumulation, devices, masks, precision."""

import functools
import json
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.train.model_from_config import _compute_dtype
from vit_jax.train.setup import set_up
from vit_jax.train.state import from_items, to_items


@pytest.fixture
def tiny_config(tiny_config):
    """Returns a function that makes configs with one block, which is enough here."""
    return lambda **values: tiny_config(**{"model.depth": 1} | values)


def batch_of(setup, seed=0):
    rng = np.random.default_rng(seed)
    shapes = setup.abstract_batch()
    rows = shapes["image"].shape
    labels = rng.integers(0, setup.info.num_classes, shapes["label"].shape)
    return {
        "image": rng.integers(0, 256, rows, dtype=np.uint8),
        "label": labels.astype(np.int32),
        "mask": np.ones(rows[0], np.float32),
        "bad": np.zeros(rows[0], np.int32),
    }


def train(config, steps=1, devices=1, batches=None):
    """Returns the parameters after some steps, and the metrics of the last one."""
    config.mesh.data = devices
    setup, step = compiled(config.to_json())
    state = setup.new_state(some_params(setup))
    state = jax.device_put(state, sharding.replicated(setup.mesh))
    for k in range(steps):
        batch = batches[k] if batches else batch_of(setup, seed=k)
        state, metrics = step(state, sharding.place(batch, setup.mesh))
    return jax.device_get(state.params), jax.device_get(metrics)


@functools.cache
def compiled(config):
    """Returns setup and step of a config, cached: compiling takes longest."""
    setup = set_up(ConfigDict(json.loads(config)))
    return setup, setup.lower().compile()


def some_params(setup):
    """Draws all parameters: with a new model's zero head most gradients are zero."""
    rng = np.random.default_rng(7)

    def some(path, x):
        noise = rng.standard_normal(x.shape).astype(x.dtype)
        if path[-1].key == "kernel":
            return noise / np.sqrt(max(math.prod(x.shape[:-1]), 1), dtype=x.dtype)
        return (path[-1].key == "scale") + 0.1 * noise

    return jax.tree.map_with_path(some, setup.abstract_state().params)


def assert_trees_close(a, b, *, of_largest):
    largest = max(np.abs(x).max() for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=of_largest * largest)


PLAIN_SGD = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
    "learning_rate": 1.0,
}


def test_a_common_factor_of_the_weights_changes_nothing(tiny_config):
    batch = batch_of(set_up(tiny_config(**PLAIN_SGD)))
    light = batch | {"mask": batch["mask"] / 64}
    config = tiny_config(**PLAIN_SGD)
    expected, metrics = train(config, batches=[batch])
    found, their_metrics = train(config, batches=[light])
    assert_trees_close(found, expected, of_largest=1e-6)
    np.testing.assert_allclose(their_metrics["loss"], metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize("accum_steps", [2, 4])
def test_accumulation_gives_the_gradients_of_the_large_batch(tiny_config, accum_steps):
    # With a learning rate of 1 the parameters' difference is the gradient.
    values = {**PLAIN_SGD, "batch_size": 32}
    start = some_params(set_up(tiny_config(**values)))
    whole, metrics = train(tiny_config(**values), devices=8)
    config = tiny_config(**values, accum_steps=accum_steps)
    parts, their_metrics = train(config, devices=8)
    subtract = lambda a, b: jax.tree.map(np.subtract, a, b)  # noqa: E731
    assert_trees_close(subtract(start, parts), subtract(start, whole), of_largest=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], their_metrics[name], rtol=1e-5)


def test_accumulation_gives_the_parameters_of_the_large_batch(tiny_config):
    values = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32}
    whole, _ = train(tiny_config(**values), steps=3)
    parts, _ = train(tiny_config(**values, accum_steps=4), steps=3)
    assert_trees_close(parts, whole, of_largest=1e-6)


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_eight_devices_equal_one(tiny_config, accum_steps):
    values = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "accum_steps": accum_steps,
        "model.dropout_rate": 0.1 if accum_steps == 1 else 0.0,
    }
    eight, metrics = train(tiny_config(**values), steps=3, devices=8)
    one, their_metrics = train(tiny_config(**values), steps=3, devices=1)
    assert_trees_close(eight, one, of_largest=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], their_metrics[name], rtol=1e-4)


def test_the_batch_is_spread_and_the_parameters_are_not(tiny_config):
    setup = set_up(tiny_config())
    batch = sharding.place(batch_of(setup), setup.mesh)
    assert batch["image"].sharding.shard_shape(batch["image"].shape)[0] == 16 // 8
    state, _ = setup.train_step()(
        jax.device_put(
            setup.new_state(setup.init_params()), sharding.replicated(setup.mesh)
        ),
        batch,
    )
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 8


def test_each_microbatch_has_rows_from_every_device(tiny_config):
    config = tiny_config(batch_size=32, accum_steps=2)
    setup = set_up(config)
    text = setup.lower().compile().as_text()
    # Resharding a microbatch would move images between devices.
    assert "all-to-all" not in text
    assert "all-gather" not in text
    assert "all-reduce" in text  # of the gradients


def test_skipped_examples_do_not_count(tiny_config):
    values = {**PLAIN_SGD, "bad_images": "skip"}
    setup = set_up(tiny_config(**values, **{"mesh.data": 1}))
    batch = batch_of(setup)
    batch["mask"][8:] = 0.0
    batch["bad"][8:] = 1
    half = {name: rows[:8] for name, rows in batch.items()}
    masked, metrics = train(tiny_config(**values), devices=1, batches=[batch])
    alone, their_metrics = train(
        tiny_config(**values, batch_size=8), devices=1, batches=[half]
    )
    assert_trees_close(masked, alone, of_largest=1e-6)
    assert metrics["loss"] == pytest.approx(their_metrics["loss"], rel=1e-5)
    assert metrics["bad_images"] == 8


def test_metrics_by_hand(tiny_config):
    config = tiny_config(**{"model.head_bias": 0.0, "schedule": "constant"})
    config.mesh.data = 1
    setup = set_up(config)
    params = setup.init_params()  # a zero head: every class has probability 1/10
    batch = batch_of(setup)
    step = setup.train_step()
    _, metrics = step(setup.new_state(params), sharding.place(batch, setup.mesh))
    assert float(metrics["loss"]) == pytest.approx(np.log(10), rel=1e-6)
    # Ties go to class 0.
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(batch["label"] == 0))
    assert float(metrics["learning_rate"]) == pytest.approx(0.01)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(tiny_config):
    # At a rate of 0 the parameters stay, so only the draws make a difference.
    values = {**PLAIN_SGD, "learning_rate": 0.0, "model.dropout_rate": 0.5}
    setup = set_up(tiny_config(**values))
    batches = [batch_of(setup)] * 2
    _, first = train(tiny_config(**values), steps=1, batches=batches)
    _, again = train(tiny_config(**values), steps=1, batches=batches)
    assert (first["loss"], first["grad_norm"]) == (again["loss"], again["grad_norm"])
    _, second = train(tiny_config(**values), steps=2, batches=batches)
    assert abs(first["loss"] - second["loss"]) > 1e-3


def test_bfloat16_computation_keeps_float32_state(tiny_config):
    config = tiny_config(compute_dtype="bfloat16")
    setup = set_up(config)
    assert setup.model.dtype == jnp.bfloat16
    text = setup.lower().as_text()
    assert "bf16" in text
    dtypes = {x.dtype for x in jax.tree.leaves(setup.abstract_state())}
    assert dtypes == {jnp.dtype("float32"), jnp.dtype("int32")}
    low, metrics = train(tiny_config(compute_dtype="bfloat16"))
    high, their_metrics = train(tiny_config())
    assert metrics["loss"].dtype == np.float32
    assert metrics["loss"] == pytest.approx(their_metrics["loss"], rel=0.02)
    assert not jax.tree.all(jax.tree.map(np.array_equal, low, high))


@pytest.mark.parametrize(
    ("platform", "dtype"),
    [("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")],
)
def test_compute_dtype_follows_the_devices(platform, dtype, tiny_config):
    """The devices are those of the mesh, even if absent; a named dtype is kept."""
    mesh = sharding.make_mesh(data=1)
    if platform == "cpu":
        assert set_up(tiny_config(), mesh=mesh).model.dtype == dtype
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([[[device]]], dtype=object))
    assert _compute_dtype("auto", mesh) == dtype
    for name in ("float32", "bfloat16"):
        assert _compute_dtype(name, mesh) == name


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_twenty_steps_fit_one_batch(tiny_config, loss):
    values = {"loss": loss, "total_steps": 30, "learning_rate": 1e-2}
    setup = set_up(tiny_config(**values))
    batches = [batch_of(setup)] * 30
    _, first = train(tiny_config(**values), steps=1, batches=batches)
    _, last = train(tiny_config(**values), steps=30, batches=batches)
    assert last["loss"] < 0.5 * first["loss"]


MIXING = {
    "big_vision": {"mixing.mixup_alpha": 0.8},
    "timm": {
        "mixing.form": "timm",
        "mixing.mixup_alpha": 0.8,
        "mixing.cutmix_alpha": 1.0,
        "mixing.erasing_prob": 0.5,
        "label_smoothing": 0.1,
    },
}


def draws(config):
    """Tells whether the step draws random numbers."""
    setup = set_up(config)
    traced = setup.train_step().trace(setup.abstract_state(), setup.abstract_batch())
    # Gamma variates, of which mixup's beta variates are made, are a primitive of JAX.
    return bool(re.search("random_(bits|gamma|split)", str(traced.jaxpr)))


def test_only_enabled_features_draw_random_numbers(tiny_config):
    assert not draws(tiny_config())
    assert draws(tiny_config(**{"model.dropout_rate": 0.1}))
    for values in (*MIXING.values(), {"mixing.erasing_prob": 0.1}):
        assert draws(tiny_config(**values))


@pytest.mark.parametrize("form", MIXING)
def test_mixing_depends_on_neither_devices_nor_microbatches(tiny_config, form):
    values = {**PLAIN_SGD, **MIXING[form], "batch_size": 32}
    setup = set_up(tiny_config(**values))
    start = some_params(setup)
    # One image has no weight: the same ones are mixed with it.
    batch = batch_of(setup)
    batch["mask"][5] = 0.0
    subtract = lambda a, b: jax.tree.map(np.subtract, a, b)  # noqa: E731
    plain, metrics = train(tiny_config(**values), devices=8, batches=[batch])
    # Eight devices and one microbatch, and one device and four microbatches.
    config = tiny_config(**values, accum_steps=4)
    other, their_metrics = train(config, devices=1, batches=[batch])
    assert_trees_close(subtract(start, other), subtract(start, plain), of_largest=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], their_metrics[name], rtol=1e-5)


def test_mixing_differs_from_step_to_step_and_not_from_run_to_run(tiny_config):
    values = {**PLAIN_SGD, **MIXING["timm"], "learning_rate": 0.0}
    batches = [batch_of(set_up(tiny_config(**values)))] * 2
    _, first = train(tiny_config(**values), batches=batches)
    _, again = train(tiny_config(**values), batches=batches)
    assert (first["loss"], first["grad_norm"]) == (again["loss"], again["grad_norm"])
    _, second = train(tiny_config(**values), steps=2, batches=batches)
    assert abs(first["loss"] - second["loss"]) > 1e-3


@pytest.mark.parametrize("form", MIXING)
def test_pixels_of_masked_examples_have_no_effect(tiny_config, form):
    values = {**PLAIN_SGD, **MIXING[form], "bad_images": "skip"}
    batch = batch_of(set_up(tiny_config(**values)))
    batch["mask"][[2, 7, 8]] = 0.0
    other = {name: rows.copy() for name, rows in batch.items()}
    other["image"][[2, 7, 8]] = 0
    other["label"][[2, 7, 8]] = 0
    params, metrics = train(tiny_config(**values), batches=[batch])
    same, their_metrics = train(tiny_config(**values), batches=[other])
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))
    assert metrics == their_metrics


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, lambda own, before: own),
        ({"label_smoothing": 0.5}, lambda own, before: 0.5 * own + 0.05),
        ({"mixing.binary_targets": True}, np.maximum),
    ],
    ids=["mixed", "smoothed", "binary"],
)
def test_targets_of_the_loss_by_hand(tiny_config, values, expected):
    mixing = {**MIXING["big_vision"], "loss": "sigmoid"}
    config = tiny_config(**PLAIN_SGD, **mixing, **values)
    setup = set_up(config)
    batch = batch_of(setup)
    # A zero head gives every class ½: the gradient of its bias is ½ − the mean target.
    state = jax.device_put(
        setup.new_state(setup.init_params()), sharding.replicated(setup.mesh)
    )
    state, metrics = setup.train_step()(state, sharding.place(batch, setup.mesh))
    own = np.eye(10)[batch["label"]]
    targets = expected(own, np.roll(own, 1, axis=0)).mean(axis=0)
    np.testing.assert_allclose(state.params["head"]["bias"] + 0.5, targets, atol=1e-6)
    # Ties go to class 0. The share of it that one image gives away, another gets.
    assert float(metrics["accuracy"]) == pytest.approx(own[:, 0].mean())


def test_mixing_moves_one_image_per_partner(tiny_config):
    values = {**MIXING["timm"], "batch_size": 32, "accum_steps": 2}
    text = set_up(tiny_config(**values)).lower().compile().as_text()
    assert "collective-permute" in text
    assert "all-to-all" not in text
    assert "all-gather" not in text


@pytest.mark.parametrize("form", ["timm"])
def test_mixed_images_train_in_bfloat16(tiny_config, form):
    config = tiny_config(**MIXING[form], compute_dtype="bfloat16")
    params, metrics = train(config, steps=2)
    _, their_metrics = train(tiny_config(**MIXING[form]), steps=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.isfinite(metrics["grad_norm"])
    assert metrics["loss"] == pytest.approx(their_metrics["loss"], rel=0.02)


def test_a_guarded_state_may_be_on_the_host(tiny_config):
    setup = set_up(tiny_config(offload_optimizer=True, bad_update="skip"))
    abstract = setup.abstract_state()
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(abstract.opt_state)}
    assert kinds == {"device", "pinned_host"}
    state, metrics = setup.lower().out_info
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    assert "skipped_updates" in metrics


def test_an_optimizer_state_on_the_host_changes_no_number(tiny_config, tmp_path):
    """Takes two steps, with a checkpoint in between that the other setup can read.

    Equal up to rounding, which AdamW would amplify where gradients are near zero.
    """
    states = {}
    for offload in (False, True):
        values = {"optimizer": "sgd", "mesh.data": 2, "mesh.fsdp": 4}
        config = tiny_config(offload_optimizer=offload, **values)
        setup = set_up(config)
        step, abstract = setup.lower().compile(), setup.abstract_state()
        where = jax.tree.map(lambda x: x.sharding, abstract)
        kinds = {x.memory_kind for x in jax.tree.leaves(where.opt_state)}
        assert kinds == {"pinned_host" if offload else "device"}
        state = jax.device_put(setup.new_state(some_params(setup)), where)
        state, _ = step(state, sharding.place(batch_of(setup), setup.mesh))
        described = Description(
            setup.architecture, setup.preprocessing, (), {"offload": offload}, 1
        )
        with Checkpoints(tmp_path / str(offload), keep=1) as checkpoints:
            checkpoints.save(1, to_items(state), described)
            checkpoints.wait()
        with Checkpoints(tmp_path / str(offload), keep=1) as checkpoints:
            found = checkpoints.restore(1, to_items(abstract))
        state = from_items(found.items, 1, abstract)
        state, _ = step(state, sharding.place(batch_of(setup, 1), setup.mesh))
        assert jax.tree.map(lambda x: x.sharding, state.opt_state) == where.opt_state
        states[offload] = jax.device_get((state.params, state.opt_state))
    assert_trees_close(states[True], states[False], of_largest=1e-6)
