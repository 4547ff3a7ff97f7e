"""Every objective continues from a checkpoint, bit for bit."""

import importlib
import json
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

from vit_jax.checkpoints.reading import load_checkpoint, load_params
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.train.loop import train_and_evaluate

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stress(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("stress_objectives")


def test_every_objective_has_a_row_and_a_missing_one_is_named(stress):
    assert not stress.without_row(OBJECTIVES)
    said = stress.without_row([*OBJECTIVES, "a_new_one"])
    assert said.startswith("objective 'a_new_one' has no row: change ROWS in ")
    said = stress.without_row(set(OBJECTIVES) - {"classification"})
    assert said.startswith("row 'classification' has no objective")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_has_the_same_bits(stress, tmp_path, name):
    row, file = stress.ROWS[name], tmp_path / "recipe.py"

    def train(recipe, steps, workdir):
        file.write_text(recipe.replace("SAVE_EVERY", "2"))
        config = runpy.run_path(str(file))["get_config"](steps)
        config.model.depth, config.mesh.data = 1, 2
        config.keep_checkpoints, config.eval_every = 9, 0
        train_and_evaluate(config, workdir)
        return (workdir / "metrics.jsonl").read_text()

    first, whole, left = (tmp_path / name for name in ("first", "whole", "left"))
    if row.first:
        train(stress.first_recipe(row), 2, first)
    recipe = stress.recipe(name, row, first)
    expected = train(recipe, 4, whole)
    # What a kill after the fourth step leaves, before its checkpoint is complete.
    shutil.copytree(whole, left)
    shutil.rmtree(left / "checkpoints" / "4")
    assert train(recipe, 4, left) == expected
    assert [json.loads(line)["step"] for line in expected.splitlines()][:4] == [
        *range(1, 5)
    ]
    trees = [
        (load_params(workdir, 4), load_checkpoint(workdir, 4, ema=True)[1])
        for workdir in (whole, left)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
