"""The course of the quickstart, with a recipe that trains next to nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from vit_jax import quickstart

RECIPE = """
import runpy
full = runpy.run_path({path!r})["get_config"]

def get_config(part):
    config = full(part)
    config.image_size = (8,) if part == "pretrain" else (12,)
    config.augment.train = "resize"
    config.model.variant = "Ti/4"
    config.model.width = 16
    config.model.depth = 1
    config.model.mlp_dim = 32
    config.model.num_heads = 2
    config.batch_size = 16
    config.total_steps = 6
    config.warmup_steps = 1
    return config
"""


@pytest.fixture
def reduced(tmp_path, monkeypatch):
    recipe = tmp_path / "reduced.py"
    path = pathlib.Path(__file__).parents[2] / quickstart.RECIPE
    recipe.write_text(RECIPE.format(path=str(path)))
    monkeypatch.setattr(quickstart, "RECIPE", recipe)
    return tmp_path / "runs"


@pytest.fixture
def call(run_command):
    def call(workdir, *flags):
        run_command(quickstart, f"--workdir={workdir}", *flags)

    return call


def test_the_quickstart_runs_shows_resumes_and_starts_afresh(reduced, call, capfd):
    call(reduced)
    shown = capfd.readouterr()
    numbers = json.loads((reduced / "quickstart.json").read_text())
    assert set(numbers) == {"pretrained", "finetuned", "control", "seconds"}
    for name in ("pretrained", "finetuned", "control"):
        assert 0 <= numbers[name] <= 1
        assert f"{numbers[name]:.1%}" in shown.out
    assert 5 < numbers["seconds"] < 600
    # Every part is a public command; the pictures have class names.
    commands = [line.split()[3] for line in shown.err.splitlines() if line[:2] == "$ "]
    assert commands == ["vit_jax.main"] * 3 + ["vit_jax.evaluate"] * 3 + [
        "vit_jax.predict"
    ]
    assert len(list((reduced / "images").glob("*_is_?.png"))) == 5
    assert shown.err.count("_is_") >= 10  # in the command and in what it prints
    assert "position embeddings resized from 2×2 to 3×3" in shown.err

    call(reduced)
    again = capfd.readouterr()
    assert again.out == shown.out
    assert "$ python" not in again.err  # nothing is trained twice

    # Interrupted before the end: finished parts stay, only the rest is done.
    (reduced / "quickstart.json").unlink()
    finished = json.loads((reduced / "finished.json").read_text())
    del finished["predict"]
    (reduced / "finished.json").write_text(json.dumps(finished))
    call(reduced)
    rest = capfd.readouterr().err
    assert "vit_jax.predict" in rest
    assert "vit_jax.main" not in rest

    # Torn files count as missing.
    (reduced / "quickstart.json").write_text('{"pre')
    call(reduced)
    assert json.loads((reduced / "quickstart.json").read_text()) == numbers | {
        "seconds": pytest.approx(numbers["seconds"], abs=60)
    }

    (reduced / "thesis.tex").touch()
    (reduced / "images/stray").touch()
    # The recipe is broken: the first part fails, and its status is the quickstart's.
    pathlib.Path(quickstart.RECIPE).write_text("")
    with pytest.raises(SystemExit) as stopped:
        call(reduced, "--fresh")
    assert stopped.value.code == 1
    assert not (reduced / "images").exists()
    assert (reduced / "thesis.tex").exists()  # not ours
    assert "has no function get_config" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_quickstart_lets_its_current_run_save(tmp_path, number):
    path = pathlib.Path(__file__).parents[2] / quickstart.RECIPE
    recipe = RECIPE.format(path=str(path)).replace("= 6", "= 10_000_000")
    (tmp_path / "configs").mkdir()
    (tmp_path / quickstart.RECIPE).write_text(recipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_jax.quickstart"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path.parents[1])},
    )
    metrics = tmp_path / "runs/quickstart/pretrain/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert f"stopped by {number.name} at step " in errors
    assert "Traceback" not in errors
    [checkpoint] = (tmp_path / "runs/quickstart/pretrain/checkpoints").glob("[0-9]*")
    assert int(checkpoint.name) > 0
    finished = json.loads((tmp_path / "runs/quickstart/finished.json").read_text())
    assert finished["pretrain"]["seconds"] > 0
    assert "value" not in finished["pretrain"]
