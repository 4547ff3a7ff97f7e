"""Runs with Lion, Muon and schedule-free AdamW, each on a part of the parameters."""

import json
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.checkpoints.reading import load_params
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.train import setup as setup_lib
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

# Muon's AdamW gets the norms and biases of the blocks.
MIXED = {
    "optimizer": "schedule_free_adamw",
    "groups": "blocks_.*: rule=muon; patch_embed/.*: rule=lion",
    "weight_decay": 0.1,
    "model.depth": 1,
}


def loss_of(model):
    """Computes the loss of a loaded model on the held-out images."""
    source = open_dataset("digits").split("test")
    examples = [source[i] for i in range(len(source))]
    images = model.prepare([example.image for example in examples])
    logits = np.float64(model(images))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.mean([log[e.label] for log, e in zip(logs, examples, strict=True)])


def test_a_run_evaluates_saves_and_continues_with_its_averages(
    tiny_config, tmp_path, monkeypatch
):
    """Also continues with a key that its optimisers do not read, as versions before.

    Only a new run with such a key is refused.
    """
    config = tiny_config(
        **MIXED,
        momentum=0.5,
        **{"mesh.data": 1, "mesh.fsdp": 2, "accum_steps": 2, "bad_update": "skip"},
        **{"offload_optimizer": True, "eval_every": 2, "keep_best": "loss"},
    )
    whole, left = tmp_path / "whole", tmp_path / "left"
    with pytest.raises(UserError, match=r"momentum=0\.5 has no effect"):
        train_and_evaluate(config, str(whole))
    with monkeypatch.context() as earlier:
        earlier.setattr(setup_lib, "unread_keys", lambda *_: [])
        last = train_and_evaluate(config, str(whole))
    expected = (whole / "metrics.jsonl").read_text()

    # What a kill after the fourth step leaves, before its checkpoint is complete.
    shutil.copytree(whole, left)
    shutil.rmtree(left / "checkpoints" / "4")
    train_and_evaluate(config, str(left))
    assert (left / "metrics.jsonl").read_text() == expected
    for averaged in (False, True):
        trees = [load_params(path, 4, ema=averaged) for path in (whole, left)]
        assert jax.tree.all(jax.tree.map(np.array_equal, *trees))

    # What is loaded is what was evaluated.
    assert {json.loads(line)["split"] for line in expected.splitlines()} == {
        "train",
        "eval",
    }
    used, trained = load_params(whole, 4, ema=True), load_params(whole, 4)
    differs = jax.tree.map(lambda x, y: not np.array_equal(x, y), used, trained)
    assert all(jax.tree.leaves(differs["head"]))
    assert not any(jax.tree.leaves([differs["blocks_00"], differs["patch_embed"]]))
    found = vit_jax.load(whole)
    np.testing.assert_array_equal(
        found.params["head"]["kernel"], used["head"]["kernel"]
    )
    raw = vit_jax.load(whole, ema=False)
    np.testing.assert_array_equal(
        raw.params["head"]["kernel"], trained["head"]["kernel"]
    )
    assert last["loss"] == pytest.approx(loss_of(found), rel=1e-5)
    assert abs(loss_of(raw) / last["loss"] - 1) > 1e-4


def test_the_objectives_own_model_cannot_be_averaged(tiny_config):
    config = tiny_config(
        objective="linear_probe", optimizer="schedule_free_adamw", grad_clip_norm=0.0
    )
    with pytest.raises(UserError) as error:
        set_up(config)
    assert (
        "optimizer=schedule_free_adamw averages the parameters, but the objective "
        "linear_probe makes the model that is saved from those that are not averaged"
    ) in str(error.value)
