"""Runs that train a few parameters continue from a checkpoint, bit for bit."""

import importlib
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.checkpoints.reading import load_checkpoint, load_params
from vit_jax.models.adapters import ADAPTERS
from vit_jax.train.loop import train_and_evaluate
from vit_jax.trees import path_name

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
# Row of the benchmark → ends of the paths that such a run trains, besides the head. The
# rows that are missing here have nothing that these lack.
TRAINED = {
    "lora and prompts": "lora_a lora_b prompts",
    "bitfit": "bias",
}


def stress_adapters():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("stress_adapters")


@pytest.fixture(scope="module")
def stress():
    return stress_adapters()


def config_of(recipe, steps, file):
    file.write_text(recipe.replace("SAVE_EVERY", "2"))
    config = runpy.run_path(str(file))["get_config"](steps)
    config.model.depth, config.mesh.data = 1, 2
    config.keep_checkpoints, config.eval_every = 9, 0
    return config


@pytest.fixture(scope="module")
def base(stress, tmp_path_factory):
    """Returns the work directory of the run whose weights the others start from."""
    folder = tmp_path_factory.mktemp("base")
    recipe = stress.recipe_before("lora")
    train_and_evaluate(config_of(recipe, 2, folder / "recipe.py"), folder / "first")
    return folder / "first"


def test_every_adapter_has_a_row_and_a_missing_one_is_named(stress):
    assert not stress.without_row(ADAPTERS)
    assert set(TRAINED) <= set(stress.ROWS)
    said = stress.without_row([*ADAPTERS, "a_new_one"])
    assert said.startswith("adapter 'a_new_one' has no row: change ROWS in ")


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_has_the_same_bits(stress, base, tmp_path, name):
    recipe = stress.recipe_of(name, base)

    def train(workdir):
        config = config_of(recipe, 4, tmp_path / "recipe.py")
        train_and_evaluate(config, workdir)
        return (workdir / "metrics.jsonl").read_text()

    whole, left = tmp_path / "whole", tmp_path / "left"
    expected = train(whole)
    # What a kill after the fourth step leaves, before its checkpoint is complete.
    shutil.copytree(whole, left)
    shutil.rmtree(left / "checkpoints" / "4")
    assert train(left) == expected
    trees = [
        (load_params(workdir, 4), load_checkpoint(workdir, 4, ema=True)[1])
        for workdir in (whole, left)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
    # Nothing but what such a run trains has other bits than the weights it began with.
    before, after = (
        {path_name(path): x for path, x in jax.tree.leaves_with_path(model.params)}
        for model in (vit_jax.load(base), vit_jax.load(whole, ema=False))
    )
    names = TRAINED[name].split()
    for path, value in after.items():
        trains = path.startswith("head/") or path.rpartition("/")[2] in names
        same = path in before and np.array_equal(before[path], value)
        assert same != trains, path
