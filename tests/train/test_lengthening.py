"""Runs that become longer after their cooldown: from the checkpoint before it."""

import json
import shutil

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints.reading import load_description, load_params, saved_steps
from vit_jax.train import lengthening
from vit_jax.train.lengthening import before_cooldown, resumed, set_aside
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_batch_size": 60}
    cools = {"schedule": "rsqrt", "rsqrt_timescale": 3, "cooldown_steps": 2}
    return lambda **values: tiny_config(**smallest | cools | values)


def test_a_longer_run_has_the_bits_of_one_that_was_never_shorter(
    tiny, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "vit_jax")
    values = {"checkpoint_every": 5, "keep_checkpoints": 1, "ema_decay": 0.9}
    short, long = (tiny(**values, total_steps=steps) for steps in (6, 10))
    run, whole, killed = (tmp_path / name for name in ("run", "whole", "killed"))
    train_and_evaluate(long, str(whole))
    train_and_evaluate(short, str(run))
    # The one before the cooldown is kept beside the newest.
    assert saved_steps(run / "checkpoints") == [4, 6]
    shorter = (run / "metrics.jsonl").read_text()
    last = load_params(run, 6)
    shutil.copytree(run, killed)

    def move(folder, target):
        raise RuntimeError("killed before the move")

    with monkeypatch.context() as patch:
        patch.setattr(lengthening, "move", move)
        with pytest.raises(RuntimeError, match="killed"):
            train_and_evaluate(long, str(killed))
    assert (killed / "metrics.jsonl").read_text() == shorter
    caplog.clear()

    for folder in (run, killed):
        train_and_evaluate(long, str(folder))
        lines = (folder / "metrics.jsonl").read_text()
        assert lines == (whole / "metrics.jsonl").read_text()
        assert saved_steps(folder / "checkpoints") == [8, 10]
        for ema in (False, True):
            both = [load_params(path, ema=ema) for path in (folder, whole)]
            assert jax.tree.all(jax.tree.map(np.array_equal, *both))
        told = "continues from step 4, before its cooldown. The run of 6 steps is kept"
        assert f"{told} in {folder / 'until-6'}" in caplog.text
        # What it was is a work directory with everything in it.
        aside = folder / "until-6"
        assert (aside / "metrics.jsonl").read_text() == shorter
        assert load_description(aside).step == 6
        assert jax.tree.all(jax.tree.map(np.array_equal, load_params(aside), last))
        recorded = json.loads((aside / "config.json").read_text())
        assert recorded["total_steps"] == 6


def plain(config):
    return config_lib.to_plain(set_up(config).config)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"total_steps": 10}, [2, 4, 5]),
        ({"schedule": "constant"}, {"total_steps": 10}, [2, 4, 5]),
        ({}, {"total_steps": 10, "cooldown_steps": 8}, [2]),  # a longer cooldown
        ({}, {"total_steps": 6, "cooldown_steps": 4}, []),  # not longer
        ({}, {"total_steps": 5}, []),
        ({"cooldown_steps": 0}, {"total_steps": 10}, []),  # continues as it is
        ({}, {"total_steps": 10, "learning_rate": 0.1}, []),
        # Without a plateau.
        ({"schedule": "cosine"}, {"total_steps": 10}, []),
        ({"schedule": "linear", "warmup_steps": 3}, {"total_steps": 10}, []),
        ({}, {"total_steps": 10, "schedule": "cosine"}, []),
        (
            {"weight_decay": 0.1, "weight_decay_end": 0.2},
            {"total_steps": 10},
            [],
        ),
    ],
)
def test_only_steps_before_a_cooldown_are_shared(tiny, before, after, expected):
    begun = tiny(total_steps=6, **before)
    now = config_lib.changed(begun, after)
    assert before_cooldown(config_lib.to_plain(begun), now, [2, 4, 5, 6]) == expected


def test_the_distance_of_gsam_belongs_to_the_rates(tiny):
    gsam = {"sam.rho": 0.5, "sam.rho_min": 0.1, "warmup_steps": 3, "total_steps": 9}
    begun = tiny(**gsam, schedule="linear", cooldown_steps=0)
    now = config_lib.changed(begun, {"end_learning_rate": 0.001})
    plain = config_lib.to_plain(begun)
    assert not lengthening.same_rates(plain, now, 2)
    now = config_lib.changed(now, {"sam.rho_min": None})
    assert lengthening.same_rates(plain, now, 2)


def test_the_newest_sound_checkpoint_before_the_cooldown_is_taken(
    tiny, make_workdir, tmp_path, monkeypatch
):
    begun, longer = plain(tiny(total_steps=6)), set_up(tiny(total_steps=10))
    run = str(make_workdir(tmp_path, config=begun, steps=(2, 4, 6)))
    newest = load_description(run)
    found = resumed(run, newest, longer)
    assert (found.earlier.step, found.cooled) == (4, newest)
    # On the plateau, and at its own length, it continues from the newest.
    on_plateau = load_description(run, 4)
    assert resumed(run, on_plateau, longer) == (on_plateau, None)
    assert resumed(run, newest, set_up(tiny(total_steps=6))) == (newest, None)

    for file in (tmp_path / "checkpoints/4/metadata").iterdir():
        file.write_text("damaged")
    found = resumed(run, newest, longer)
    assert found.earlier.step == 2
    # Also a second time, which finds what an interrupted first one left.
    (tmp_path / "until-6/checkpoints/6").mkdir(parents=True)
    (tmp_path / "wandb_run_id.txt").write_text("page")
    set_aside(run, found)
    assert not (tmp_path / "wandb_run_id.txt").exists()
    assert (tmp_path / "until-6/wandb_run_id.txt").read_text() == "page"
    assert saved_steps(tmp_path / "checkpoints") == [2]
    assert load_description(tmp_path / "until-6").step == 6
    assert saved_steps(tmp_path / "until-6/checkpoints") == [4, 6]

    monkeypatch.setattr(type(longer.objective), "reads_schedule", True)
    assert resumed(run, newest, longer) == (newest, None)
