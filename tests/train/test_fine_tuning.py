"""Training a part of a model: what is computed, kept and changed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up
from vit_jax.trees import path_name

ONE = {"mesh.data": 1}


def drawn(setup):
    """Draws all parameters: with the zero head of a new model nothing else learns."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape).astype(np.float32),
        setup.param_shapes,
    )


def batches(setup):
    rng, rows = np.random.default_rng(0), setup.config.batch_size
    while True:
        batch = {
            "image": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
            "label": rng.integers(0, 10, rows).astype(np.int32),
            "mask": np.ones(rows, np.float32),
            "bad": np.zeros(rows, np.int32),
        }
        yield sharding.place(batch, setup.mesh)


def run(config, steps):
    """Returns the setup, and parameters, averages and metrics after each step."""
    setup = set_up(config)
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    state = jax.device_put(setup.new_state(drawn(setup)), where)
    step, found = setup.train_step(), []
    for _, batch in zip(range(steps), batches(setup), strict=False):
        state, metrics = step(state, batch)
        found.append(jax.device_get((state.params, state.ema, metrics)))
    return setup, found, jax.device_get(state)


def flat(tree):
    return {path_name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def changed(before, after):
    after = flat(after)
    return {
        path for path, x in flat(before).items() if not np.array_equal(x, after[path])
    }


def test_only_the_head_changes_and_only_it_has_a_gradient_and_a_state(tiny_config):
    config = tiny_config(
        train_only="head", weight_decay=0.1, ema_decay=0.9, bad_update="skip", **ONE
    )
    setup, found, state = run(config, 2)
    before = drawn(setup)
    for params, averages, _ in found:
        assert changed(before, params) == {"head/kernel", "head/bias"}
        assert changed(before, averages) == {"head/kernel", "head/bias"}
    kept = {path for path in flat(state.opt_state) if "/" in path}
    owners = [path for path in kept if set(path.split("/")) & set(before)]
    assert len(owners) == 4 and all("head" in path for path in owners)
    # The program has the products of the forward pass, and that of the head's kernel.
    arguments = setup.abstract_arguments()
    forward = jax.jit(lambda state, batch: _loss(setup, state.params, batch))
    products = [
        lowered.as_text().count("dot_general")
        for lowered in (setup.lower(), forward.lower(*arguments))
    ]
    assert products[0] == products[1] + 1


def _loss(setup, params, batch):
    objective, key = setup.objective, jax.random.key(0)
    batch, key = objective.prepare(key, batch, None)
    context = Context((), (), jnp.int32(0), None)
    return objective.loss(params, batch, key, context)[0]["loss"][0]


def kept_bytes(config):
    """Returns the bytes that the forward pass keeps for the backward pass."""
    setup = set_up(config)
    groups, state = setup.groups, setup.abstract_state()

    def backward(params, batch):
        return jax.vjp(
            lambda some: _loss(setup, groups.merged(some, params), batch),
            groups.trained(params),
        )[1]

    found = jax.eval_shape(backward, state.params, setup.abstract_batch())
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_in_front_of_the_trained_ones_keep_no_activations(tiny_config, scan):
    values = {"model.scan": scan, **ONE}
    last = "blocks_0{}/.*,blocks_0{}/.*,norm/.*,head"
    deep, shallow, whole = (
        kept_bytes(tiny_config(train_only=only, **values, **{"model.depth": depth}))
        for only, depth in ((last.format(3, 4), 5), (last.format(0, 1), 2), ("", 5))
    )
    assert deep == shallow
    assert whole > 2 * deep


def test_the_backbone_waits_and_then_begins_like_a_new_run(tiny_config):
    steps = 2
    values = {"schedule": "constant", "ema_decay": 0.5, "weight_decay": 0.1, **ONE}
    setup, found, _ = run(tiny_config(head_only_steps=steps, **values), steps + 1)
    _, alone, _ = run(tiny_config(train_only="head", **values), steps)
    before = drawn(setup)
    for ours, theirs in zip(found[:steps], alone, strict=True):
        assert changed(before, ours[0]) == {"head/kernel", "head/bias"}
        # Clipping, too, has seen the head's gradients alone.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            (ours[0]["head"], ours[2]["grad_norm"]),
            (theirs[0]["head"], theirs[2]["grad_norm"]),
        )
    last, now = flat(found[steps - 1][0]), flat(found[steps][0])
    assert len(changed(last, now)) > 20
    # Adam's first direction is the sign of the gradient, of its later ones not.
    path = "blocks_00/norm1/scale"  # without weight decay
    moved = np.abs(now[path] - last[path]) / setup.config.learning_rate
    np.testing.assert_allclose(moved, 1.0, rtol=1e-2)


def test_eight_devices_and_a_scan_in_two_parts_update_like_one(tiny_config):
    values = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "freeze": "patches,positions,tokens,blocks_00/.*",
        "groups": "head/.*: clip=0.1",
        "layer_decay": 0.5,
        "layer_decay_form": "timm",
        "grad_clip_adaptive": 0.05,
        "model.depth": 3,
    }
    eight = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2}
    eight |= {"model.scan": True, "model.remat": "full"}
    one, [(expected, _, _)], _ = run(tiny_config(**values, **ONE), 1)
    setup, [(found, _, _)], _ = run(tiny_config(**values, **eight), 1)
    assert (one.model.scan_apart, setup.model.scan_apart) == (0, 1)
    assert {path.split("/")[0] for path in changed(drawn(setup), found)} == {
        *("blocks_01", "blocks_02", "norm", "head")
    }
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        *(found, expected),
    )


def problems(config):
    with pytest.raises(ValueError) as error:
        set_up(config)
    return re.sub(r"^.*\n", "", str(error.value)).splitlines()


def test_keys_without_effect_are_refused_together(tiny_config):
    found = problems(
        tiny_config(
            layer_decay_form="timm",
            layer_decay_min=0.1,
            head_only_steps=4,
            grad_clip_adaptive=0.1,
            grad_clip_parameter_norm=1.0,
            freeze="haed",
        )
    )
    assert [re.match(r"  - (\w+)", line)[1] for line in found] == [
        "layer_decay_form",
        "layer_decay_min",
        "head_only_steps",
        "grad_clip_adaptive",
        "freeze",
    ]
    assert "leaves none of total_steps=4 for the backbone; use train_only" in found[2]
    assert "'haed' matches no parameter; did you mean 'head'?" in found[4]
    found = problems(tiny_config(layer_decay=0.5, layer_decay_min=1.0))
    assert (
        "layer_decay_min=1.0 with layer_decay=0.5 makes all factors equal" in found[0]
    )
    found = problems(tiny_config(layer_decay=0.5, layer_decay_form="time"))
    assert found == [
        "  - layer_decay_form='time': choose from mae, timm; did you mean 'timm'?"
    ]
