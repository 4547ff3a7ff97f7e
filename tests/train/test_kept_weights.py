"""Averaged weights, the best checkpoint, and a damaged newest checkpoint."""

import json
import logging
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import predict, sharding
from vit_jax.checkpoints.reading import load_params
from vit_jax.train import loop
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.processes.interrupts import Interrupted
from vit_jax.train.reporting.profiling import Profile
from vit_jax.train.setup import set_up


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_every": 2, "total_steps": 6}
    smallest |= {"eval_batch_size": 120, "keep_checkpoints": 3}
    return lambda **values: tiny_config(**smallest | values)


def batch_of(setup, seed):
    rng = np.random.default_rng(seed)
    rows = setup.abstract_batch()["image"].shape
    batch = {
        "image": rng.integers(0, 256, rows, dtype=np.uint8),
        "label": rng.integers(0, 10, rows[0]).astype(np.int32),
        "mask": np.ones(rows[0], np.float32),
        "bad": np.zeros(rows[0], np.int32),
    }
    return sharding.place(batch, setup.mesh)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_the_formula(tiny, warmup):
    setup = set_up(tiny(ema_decay=0.3, ema_warmup=warmup))
    step, state = setup.lower().compile(), setup.new_state(setup.init_params())
    expected = jax.device_get(state.params)
    for t in range(4):
        state, _ = step(state, batch_of(setup, t))
        decay = min(0.3, (1 + t) / (10 + t)) if warmup else 0.3
        expected = jax.tree.map(
            lambda e, p, decay=decay: decay * e + (1 - decay) * np.float64(p),
            expected,
            jax.device_get(state.params),
        )
    for x, y in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_an_average_is_sharded_like_its_parameters(tiny):
    state = set_up(tiny(ema_decay=0.9, **{"mesh.data": 2, "mesh.fsdp": 4}))
    state = state.abstract_state()
    where = jax.tree.map(lambda x: x.sharding, state.params)
    assert jax.tree.map(lambda x: x.sharding, state.ema) == where
    assert where["blocks_00"]["mlp"]["fc1"]["kernel"].spec[0] == "fsdp"


def test_without_an_average_the_state_has_none(tiny):
    setup = set_up(tiny())
    state = setup.abstract_state()
    assert state.ema is None
    with_average = set_up(tiny(ema_decay=0.9)).abstract_state()
    more = len(jax.tree.leaves(with_average)) - len(jax.tree.leaves(state))
    assert more == len(jax.tree.leaves(state.params))


def lines(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def damage(workdir, step, part):
    files = (pathlib.Path(workdir) / "checkpoints" / str(step) / part).rglob("d/*")
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def stop_at_once(monkeypatch, config, workdir):
    """Ends the run as if SIGTERM had arrived in its first step."""
    stepped = Profile.stepped

    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return stepped(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Profile, "stepped", stop)
        with pytest.raises(Interrupted, match="at step 1"):
            train_and_evaluate(config, workdir)


def test_runs_with_averages_resume_exactly_and_past_damage(
    tiny, tmp_path, monkeypatch, caplog, run_command, capsys
):
    config = tiny(ema_decay=0.5)
    whole, other = str(tmp_path / "whole"), str(tmp_path / "other")
    train_and_evaluate(config, whole)
    splits = [(line["step"], line["split"]) for line in lines(whole)]
    assert [pair for pair in splits if pair[1] != "train"] == [
        (step, split) for step in (2, 4, 6) for split in ("eval", "eval_ema")
    ]
    assert len(splits) == len(set(splits)) == 6 + 6

    stop_at_once(monkeypatch, config, other)
    train_and_evaluate(config, other)
    # Lines after the checkpoint that is used are written again.
    damage(other, 6, "ema")
    damage(other, 4, "optimizer")
    caplog.set_level(logging.INFO)
    train_and_evaluate(config, other)
    assert "resuming from the checkpoint of step 2" in caplog.text
    assert sorted(os.listdir(f"{other}/checkpoints")) == [
        *("2", "4", "4.damaged", "6", "6.damaged")
    ]
    assert lines(other) == lines(whole)
    for ema in (False, True):
        ours, theirs = load_params(other, ema=ema), load_params(whole, ema=ema)
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))

    # The averaged weights are preferred, which is logged; the others are available.
    caplog.clear()
    model = vit_jax.load(whole)
    assert f"{whole}, step 6: averaged weights used" in caplog.text
    assert jax.tree.all(
        jax.tree.map(np.array_equal, model.params, load_params(whole, ema=True))
    )
    raw = vit_jax.load(whole, ema=False)
    assert jax.tree.all(jax.tree.map(np.array_equal, raw.params, load_params(whole)))
    assert not np.array_equal(model.params["cls"], raw.params["cls"])
    image = tmp_path / "image.png"
    import PIL.Image

    PIL.Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(image)
    shown = {}
    for flag in ("--noraw", "--raw"):
        run_command(predict, f"--checkpoint={whole}", flag, "--json", image)
        shown[flag] = json.loads(capsys.readouterr().out)["predictions"][0]["top"]
    for flag, of in (("--noraw", model), ("--raw", raw)):
        [(name, probability), *_] = of.predict([image])[0]
        assert shown[flag][0] == {"class": name, "probability": probability}
    assert shown["--noraw"] != shown["--raw"]


def test_the_best_evaluation_saves_a_checkpoint_that_is_kept(
    tiny, tmp_path, monkeypatch
):
    """The losses are set: the best is at step 4, where no checkpoint is due."""
    told = iter([3.0, 1.0, 2.0, 1.5, 1.25])

    def measured(self, step, params, watch):
        return {"loss": next(told), "top1": 0.5, "top5": 1.0, "examples": 360}

    monkeypatch.setattr(loop.Evaluations, "measure", measured)
    config = tiny(keep_best="loss", keep_checkpoints=1, checkpoint_every=5)
    config.total_steps = 10
    train_and_evaluate(config, str(tmp_path))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "4"]
