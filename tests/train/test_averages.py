"""Moving averages of the parameters with several decays: kept, evaluated, loaded."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from absl import flags

from vit_jax import command, evaluate
from vit_jax.api import load
from vit_jax.checkpoints.reading import load_params
from vit_jax.errors import UserError
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

DECAYS = {"ema_decay": 0.9, "ema_decays": (0.25, 0.1)}


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_batch_size": 60}
    return lambda **values: tiny_config(**smallest | values)


def test_each_average_follows_its_own_decay(tiny, tmp_path, run_command, capsys):
    values = {**DECAYS, "ema_warmup": True, "checkpoint_every": 1, "log_every": 4}
    values |= {"keep_checkpoints": 9, "total_steps": 4, "mesh.fsdp": 2}
    config, run = tiny(**values), tmp_path / "run"
    train_and_evaluate(config, str(run))
    start = jax.device_get(jax.jit(set_up(config).init_params)())
    trees = [start, *(load_params(run, step) for step in (1, 2, 3, 4))]
    for most in (0.9, 0.25, 0.1):
        expected = np.concatenate([*map(np.ravel, jax.tree.leaves(start))])
        for t, tree in enumerate(trees[1:]):
            decay = min(most, (1 + t) / (10 + t))
            now = np.concatenate([*map(np.ravel, jax.tree.leaves(tree))])
            expected = decay * expected + (1 - decay) * now
        found = jax.tree.leaves(load_params(run, ema=most))
        found = np.concatenate([*map(np.ravel, found)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)

    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    measured = {line["split"]: line["loss"] for line in lines}
    names = ["train", "eval", "eval_ema", "eval_ema_0.25", "eval_ema_0.1"]
    assert list(measured) == names
    assert len(set(measured.values())) == len(measured)

    # The same numbers by the command, and the same weights by the library.
    capsys.readouterr()
    run_command(evaluate, f"--checkpoint={run}", "--ema=0.25", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["loss"] == pytest.approx(measured["eval_ema_0.25"], 1e-6)
    ours = jax.tree.leaves(load(run, ema=0.25).params)
    theirs = jax.tree.leaves(load_params(run, ema=0.25))
    assert all(map(np.array_equal, ours, theirs))
    first, default = load_params(run, ema=0.9), load_params(run, ema=True)
    assert jax.tree.all(jax.tree.map(np.array_equal, first, default))
    with pytest.raises(
        UserError, match=r"ema=0\.7: .* it has the decays 0.9, 0.25, 0.1"
    ):
        load(run, ema=0.7)

    # What a kill leaves before the checkpoint of the third step is complete.
    left = tmp_path / "left"
    shutil.copytree(run, left)
    for step in (3, 4):
        shutil.rmtree(left / f"checkpoints/{step}")
    train_and_evaluate(config, str(left))
    assert (left / "metrics.jsonl").read_text() == text
    for decay in (0.9, 0.25, 0.1):
        both = [load_params(folder, ema=decay) for folder in (run, left)]
        assert jax.tree.all(jax.tree.map(np.array_equal, *both))


def test_averages_are_spread_like_the_parameters(tiny):
    state = set_up(tiny(**DECAYS, **{"mesh.fsdp": 8})).abstract_state()
    assert state.averages.keys() == {"0_25", "0_1"}
    where = jax.tree.map(lambda x: x.sharding, state.params)
    for tree in state.averages.values():
        assert jax.tree.map(lambda x: x.sharding, tree) == where
    assert set_up(tiny(ema_decay=0.9)).abstract_state().averages is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema_decays": (0.5,)}, "ema_decays=(0.5,) without ema_decay: the first"),
        (
            {"ema_decay": 0.9, "ema_decays": (0.5, 0.9)},
            "ema_decay=0.9 and ema_decays=(0.5, 0.9) name 0.9 more than once",
        ),
        (
            {"ema_decay": 0.9, "ema_decays": (1.0,)},
            "ema_decays=(1.0,): give numbers above 0 and at most 0.9999999",
        ),
        ({"ema_decay": 0.9, "ema_decays": (0.0,)}, "ema_decays=(0.0,): give numbers"),
        ({"ema_decay": 0.9, "ema_decays": ("a",)}, "ema_decays=('a',): give numbers"),
    ],
)
def test_impossible_decays_are_refused(tiny, values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        set_up(tiny(**values))


def test_the_flags_choose_an_average():
    for given, expected in {"--raw": False, "--noraw": True, "--ema=0.5": 0.5}.items():
        values = flags.FlagValues()
        command.define_average(values)
        values(["command", given])
        assert command.average(values) == expected
    values(["command", "--raw"])
    with pytest.raises(UserError, match=r"--ema=0\.5 and --raw are both given"):
        command.average(values)


def test_a_file_has_no_averages(make_teacher):
    with pytest.raises(UserError, match=r"ema=0\.5, but .* is not a work directory"):
        load(make_teacher(), ema=0.5)
