"""Runs that train a part of a model: continued with the same bits, refused in time."""

import shutil

import jax
import numpy as np

from vit_jax import main
from vit_jax.checkpoints.reading import load_checkpoint, load_params
from vit_jax.train.loop import train_and_evaluate


def test_a_run_that_is_killed_while_only_the_head_trains_continues(
    tiny_config, tmp_path
):
    values = {
        "freeze": "patches,blocks_00/.*",
        "head_only_steps": 3,
        "groups": "head/.*: clip=0.1",
        "grad_clip_adaptive": 0.05,
        "ema_decay": 0.9,
        "momentum_dtype": "bfloat16",
        "offload_optimizer": True,
        "bad_update": "skip",
        "total_steps": 6,
        "keep_checkpoints": 9,
        "mesh.data": 1,
        "mesh.fsdp": 2,
    }
    whole, left = tmp_path / "whole", tmp_path / "left"
    train_and_evaluate(tiny_config(**values), str(whole))
    shutil.copytree(whole, left)
    for step in (4, 6):
        shutil.rmtree(left / "checkpoints" / str(step))
    train_and_evaluate(tiny_config(**values), str(left))
    assert (left / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    trees = [
        (load_params(workdir, 6), load_checkpoint(workdir, 6, ema=True)[1])
        for workdir in (whole, left)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
    # In the first phase the backbone has the bits it began with, and then it moves.
    first, last = (load_params(whole, step) for step in (2, 6))
    for name in ("patch_embed", "blocks_00", "blocks_01"):
        same = jax.tree.map(np.array_equal, first[name], last[name])
        assert jax.tree.all(same) == (name != "blocks_01")


def test_a_misspelt_set_ends_the_command_before_anything_is_written(
    tiny_recipe, tmp_path, call
):
    flags = (f"--config={tiny_recipe(tmp_path)}", f"--workdir={tmp_path / 'run'}")
    message = call(main.main, *flags, "--config.train_only=haed")
    assert "train_only: 'haed' matches no parameter; did you mean 'head'" in message
    assert not (tmp_path / "run").exists()
