"""Work directories and files of version 0.1, which still open, predict and continue."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

import vit_jax
from vit_jax import main

OLD = pathlib.Path(__file__).parents[1] / "golden" / "old_runs"
# Where version 0.1 put each of these runs when no --workdir was given.
NAMES = json.loads((OLD / "names.json").read_text())


def logits_of_0_1(name, which="logits"):
    with np.load(OLD / f"{name}.npz") as file:
        return file["images"], file[which]


def metrics(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_unchanged(name):
    for which, ema in (("logits", True), ("last", False)):
        images, logits = logits_of_0_1(name, which)
        model = vit_jax.load(OLD / name, ema=ema)
        np.testing.assert_allclose(model(images), logits, rtol=0, atol=1e-6)
    assert model.class_names == tuple("0123456789")
    # These runs did not record it.
    assert model.outputs == ("independent" if name == "adafactor" else "exclusive")


def test_averaged_weights_differ_from_the_last_ones():
    with np.load(OLD / "ema.npz") as file:
        assert np.abs(file["logits"] - file["last"]).max() > 1e-3


def test_predictions_from_our_own_format_are_unchanged():
    images, logits = logits_of_0_1("adamw")
    model = vit_jax.load(OLD / "model.safetensors")
    np.testing.assert_allclose(model(images), logits, rtol=0, atol=1e-6)
    assert model.class_names == tuple("0123456789")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_continued_by_its_own_command(
    name, call, tmp_path, monkeypatch, add_keys
):
    """Continues a run begun without --workdir, although this version has more keys."""
    shutil.copytree(OLD / name, tmp_path / NAMES[name])
    monkeypatch.chdir(tmp_path)
    add_keys()
    assert call(main.main, f"--config={OLD / 'recipe.py'}:{name}") is None

    assert [path.name for path in pathlib.Path("runs").iterdir()] == [
        os.path.basename(NAMES[name])
    ]
    found = metrics(pathlib.Path(NAMES[name], "metrics.jsonl"))
    expected = metrics(OLD / f"{name}.jsonl")
    begun = metrics(OLD / name / "metrics.jsonl")
    assert found[: len(begun)] == begun != expected
    for line, theirs in zip(found, expected, strict=True):
        assert line.pop("split") == theirs.pop("split")
        assert line == pytest.approx(theirs, rel=1e-5, abs=1e-6)
