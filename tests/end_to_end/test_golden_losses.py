"""Golden training losses; benchmarks/same_bits.py compares every bit."""

import json
import pathlib
import runpy

import pytest

from vit_jax import main

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
REDUCED = runpy.run_path(str(GOLDEN / "reduced_recipes.py"))
LOSSES = json.loads((GOLDEN / "reduced_losses.json").read_text())


@pytest.mark.parametrize("name", REDUCED["RECIPES"])
def test_every_loss_equals_the_golden_one(name, call, tmp_path):
    flags = REDUCED["command_line"](name, REPOSITORY)
    flags.append("--config.mesh.data=1")
    assert call(main.main, *flags, f"--workdir={tmp_path}") is None
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [[x["step"], x["split"], x["loss"]] for x in map(json.loads, lines)]
    assert [row[:2] for row in found] == [row[:2] for row in LOSSES[name]]
    losses, expected = ([row[2] for row in rows] for rows in (found, LOSSES[name]))
    assert losses == pytest.approx(expected, rel=0, abs=1e-5)
