"""Resumption: a run that is killed and resumed ends exactly like an undisturbed one."""

import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import main
from vit_jax.checkpoints.reading import load_description, load_params

HERE = pathlib.Path(__file__).parent
STEPS = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_recipe):
    values = {
        "name": "resume",
        "eval_batch_size": 120,
        "total_steps": STEPS,
        "eval_every": 4,
        "checkpoint_every": 3,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "model.depth": 1,
        "model.dropout_rate": 0.1,
    }
    return tiny_recipe(tmp_path_factory.mktemp("recipe"), **values)


@pytest.fixture(scope="module")
def uninterrupted(recipe):
    workdir = recipe.parent / "uninterrupted"
    done = run(recipe, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def run(recipe, workdir, point="none", *options):
    return subprocess.run(
        command(recipe, workdir, point, *options),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(recipe),
    )


def environment(recipe):
    # A kill may tear an entry of the compilation cache: do not use the shared one.
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(recipe.parent / "compiled")}


def command(recipe, workdir, point="none", *options):
    script = str(HERE / "killed_run.py")
    flags = [f"--config={recipe}", f"--workdir={workdir}", *options]
    return [sys.executable, script, point, *flags]


def assert_same_end(workdir, reference):
    ours, theirs = load_params(workdir, STEPS), load_params(reference, STEPS)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    lines, expected = (
        (folder / "metrics.jsonl").read_text().splitlines()
        for folder in (workdir, reference)
    )
    assert lines == expected
    keys = [(line["step"], line["split"]) for line in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == STEPS + 3  # evaluated at 4, 8 and 10
    images = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(3)]
    assert vit_jax.load(workdir).predict(images) == vit_jax.load(reference).predict(
        images
    )


@pytest.mark.parametrize(
    "points",
    [
        # Killed repeatedly: each restart gets a little further.
        ("write:2:train", "save:3", "torn:5", "rename:6", "write:8:eval"),
        ("evaluating:4", "rename:10"),
    ],
)
def test_a_run_killed_at_any_point_ends_with_the_same_bits(
    recipe, uninterrupted, tmp_path, points
):
    workdir = tmp_path / "run"
    for point in points:
        done = run(recipe, workdir, point)
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
    done = run(recipe, workdir)
    assert done.returncode == 0, done.stderr
    assert_same_end(workdir, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(recipe, uninterrupted, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(recipe, workdir),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(recipe),
    )
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    match = re.search(rf"stopped by {number.name} at step (\d+)", errors)
    assert match
    step = int(match[1])
    assert 1 <= step <= STEPS
    assert load_description(workdir).step == step  # that very step was saved
    assert run(recipe, workdir).returncode == 0
    assert_same_end(workdir, uninterrupted)


def test_a_terminal_that_closes_makes_the_run_save(recipe, tmp_path):
    workdir = tmp_path / "run"
    leader, terminal = pty.openpty()
    takes_it = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", takes_it, *command(recipe, workdir, "slow:2")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=environment(recipe),
    )
    os.close(terminal)
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        if select.select([leader], [], [], 0.01)[0]:
            os.read(leader, 1 << 16)
    os.close(leader)  # the system sends SIGHUP, and nothing can be written any more
    assert process.wait(120) == 128 + signal.SIGHUP
    assert 1 <= load_description(workdir).step < STEPS


def test_a_signal_during_the_first_compilation_ends_at_once(recipe, tmp_path):
    done = run(recipe, tmp_path / "run", "compile:term")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped by SIGTERM before the first step; there was noth" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_not_changed(recipe, uninterrupted, call):
    before = (uninterrupted / "metrics.jsonl").read_text()
    flags = f"--config={recipe}", f"--workdir={uninterrupted}"
    assert call(main.main, *flags) is None
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_another_config_in_the_same_directory_is_refused(recipe, uninterrupted, call):
    flags = f"--config={recipe}", f"--workdir={uninterrupted}"
    others = "--config.seed=1", "--config.momentum=0.8"
    message = call(main.main, *flags, *others)
    assert "2 keys differ (there → here)" in message
    assert "seed: 0 → 1" in message
    assert "momentum: 0.9 → 0.8" in message
