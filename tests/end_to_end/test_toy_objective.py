"""A toy objective and a toy evaluator that use nothing but the protocols."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import vit_jax
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.config.recipes import load_recipe
from vit_jax.train.setup import set_up
from vit_jax.train.start import fit_weights, initial_state
from vit_jax.weights.loading import load_weights

HERE = pathlib.Path(__file__).parent
STEPS = 6
ON_EIGHT = ["--config.mesh.data=2", "--config.mesh.fsdp=4"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "recipe.py"
    path.write_text(f"""
from ml_collections import ConfigDict
from vit_jax.config import default_config

def get_config():
    config = default_config()
    config.update_from_flattened_dict({{
        "name": "toy", "dataset": "digits", "image_size": (8,), "batch_size": 16,
        "eval_batch_size": 200, "train_split": "train[:200]", "total_steps": {STEPS},
        "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2,
        "augment.train": "inception_crop", "keep_best": "nearest/accuracy",
        "objective": "toy:SelfDistillation", "accum_steps": 2,
        "model.variant": "Ti/4", "model.depth": 1, "model.width": 16,
        "model.mlp_dim": 32, "model.num_heads": 2, "model.channels": 1,
        "model.dropout_rate": 0.1, "mesh.data": 1, "loader_threads": 2,
    }})
    config.objective_options = ConfigDict({{"momentum": 0.8}})
    config.evaluators = ConfigDict(
        {{"nearest": {{"kind": "toy:NearestMean", "every": 3, "metric": "cosine"}}}}
    )
    return config
""")
    return path


def run(recipe, workdir, point="none", *options, check=True):
    script = str(HERE / "killed_run.py")
    flags = [f"--config={recipe}", f"--workdir={workdir}", *options]
    done = subprocess.run(
        [sys.executable, script, point, *flags],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def whole(recipe):
    workdir = recipe.parent / "whole"
    run(recipe, workdir)
    return workdir


@pytest.fixture(scope="module")
def whole_on_eight(recipe):
    workdir = recipe.parent / "eight"
    run(recipe, workdir, "none", *ON_EIGHT)
    return workdir


def lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir, part, step=STEPS):
    folder = (workdir / "checkpoints" / str(step) / part).resolve()
    checkpointer = ocp.PyTreeCheckpointer()
    shapes = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    tree = checkpointer.restore(folder, restore_args=as_numpy)
    return {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }


def test_a_toy_objective_trains_and_is_evaluated_on_schedule(whole):
    found = lines(whole)
    splits = [(line["step"], line["split"]) for line in found]
    train = [line for line in found if line["split"] == "train"]
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert all(np.isfinite([line["loss"], line["distance"]]).all() for line in train)
    assert "accuracy" not in train[0]
    assert [x for x in splits if x[1] != "train"] == [
        (3, "eval"),
        (3, "eval_average"),
        (6, "eval"),
        (6, "eval_average"),
    ]
    for line in found:
        if line["split"] != "train":
            assert 0 <= line["nearest/accuracy"] <= 1
            assert "loss" not in line
    # The best by the evaluator is kept, besides the newest.
    state = arrays(whole, "objective")
    assert any("centre" in name and np.any(value) for name, value in state.items())


@pytest.mark.parametrize("devices", ["one", "eight"])
def test_a_killed_and_resumed_toy_run_ends_with_the_same_bits(
    request, recipe, tmp_path, devices
):
    whole = request.getfixturevalue("whole" if devices == "one" else "whole_on_eight")
    flags = ON_EIGHT if devices == "eight" else []
    workdir = tmp_path / "killed"
    done = run(recipe, workdir, "write:4:train", *flags, check=False)
    assert done.returncode == -9
    run(recipe, workdir, "none", *flags)
    assert (workdir / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()
    for part in ("params", "optimizer", "objective"):
        ours, theirs = arrays(workdir, part), arrays(whole, part)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), (part, name)


def test_eight_devices_learn_as_one(whole, whole_on_eight):
    for ours, theirs in zip(lines(whole_on_eight), lines(whole), strict=True):
        assert ours["split"] == theirs["split"]
        for name in ("loss", "distance", "grad_norm"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=2e-4), name


def test_a_run_starts_from_the_model_alone_and_draws_the_rest(
    recipe, whole, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(HERE)
    config, _ = load_recipe(["main", f"--config={recipe}", "--config.seed=1"])
    weights = load_weights(whole)
    setup = set_up(config, pretrained=weights.description)
    params = fit_weights(setup, weights, ())
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state = jax.device_get(initial_state(setup, checkpoints, params))
    fresh = jax.device_get(jax.jit(setup.init_params)())
    for name, value in state.params.items():
        expected = fresh[name] if name == "projection" else weights.params[name]
        jax.tree.map(np.testing.assert_array_equal, value, expected)
    jax.tree.map(
        np.testing.assert_array_equal, state.objective["average"], state.params
    )


def test_the_evaluate_command_measures_the_same(whole, recipe):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vit_jax.evaluate", f"--checkpoint={whole}"),
            *("--evaluator=toy:NearestMean", "--option=metric=cosine", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [expected] = [x for x in lines(whole) if (x["step"], x["split"]) == (STEPS, "eval")]
    assert found["accuracy"] == expected["nearest/accuracy"]


def test_the_model_loads_without_other_trained_parameters(whole):
    model = vit_jax.load(whole)
    assert "projection" not in model.params
    assert model.architecture.num_classes == 0
