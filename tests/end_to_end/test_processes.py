"""Runs of several processes: trained like one, and none left behind if one is lost."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_jax.checkpoints.reading import load_params
from vit_jax.config.recipes import load_recipe
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.processes.peers import GONE

SCRIPT = str(pathlib.Path(__file__).parent / "killed_run.py")
STEPS = 40

# Four devices. On the second mesh, processes of one device share rows of the batch.
SPREAD = ("--config.mesh.data=4",)
DIVIDED = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_recipe):
    values = {
        "name": "processes",
        "eval_batch_size": 120,
        "total_steps": STEPS,
        "eval_every": 16,
        "checkpoint_every": 6,
        "weight_decay": 0.1,
        "optimizer": "sgd",  # AdamW amplifies the rounding of gradients near zero
        "learning_rate": 0.1,
        "model.depth": 1,
        "model.dropout_rate": 0.1,
        "loader_threads": 1,
    }
    return tiny_recipe(tmp_path_factory.mktemp("recipe"), **values)


def run_here(recipe, workdir, mesh):
    """Trains in one process, with four of its eight devices."""
    config, _ = load_recipe(["main", f"--config={recipe}", *mesh])
    train_and_evaluate(config, str(workdir))
    return workdir


def by_flags(port, count, number):
    """Returns the flags and the environment that tell a process its place."""
    address = f"--coordinator_address=localhost:{port}"
    return [address, f"--num_processes={count}", f"--process_id={number}"], {}


def by_slurm(port, count, number):
    variables = {
        "JAX_COORDINATOR_PORT": port,
        "SLURM_JOB_ID": 1234,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": count,
        "SLURM_PROCID": number,
        "SLURM_LOCALID": number,
    }
    return [], variables


def by_open_mpi(port, count, number):
    variables = {
        "JAX_COORDINATOR_PORT": port,
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": count,
        "OMPI_COMM_WORLD_RANK": number,
        "OMPI_COMM_WORLD_LOCAL_RANK": number,
    }
    return [], variables


def run_in(processes, devices, recipe, workdir, mesh, points=(), launched=by_flags):
    """Runs processes; returns the exit status and the errors of each.

    `points` maps a process to the point of killed_run.py where it is killed or stopped.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = [launched(port, processes, number) for number in range(processes)]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    running = [
        subprocess.Popen(
            [
                *(sys.executable, SCRIPT, dict(points).get(number, "none")),
                *(f"--config={recipe}", f"--workdir={workdir}", *mesh),
                *own_flags,
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags}
            | {name: str(value) for name, value in variables.items()},
        )
        for number, (own_flags, variables) in enumerate(places)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], errors


def assert_same(workdir, reference, evaluations=3):
    ours, theirs = (
        list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        for folder in (workdir, reference)
    )
    assert len(theirs) == STEPS + evaluations  # at 16, 32 and 40
    for line, expected in zip(ours, theirs, strict=True):
        assert line.pop("split") == expected.pop("split")
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        load_params(workdir, STEPS),
        load_params(reference, STEPS),
    )


def test_two_processes_of_two_devices_are_one_of_four(recipe, tmp_path):
    two = tmp_path / "two"
    ended, errors = run_in(2, 2, recipe, two, SPREAD, launched=by_slurm)
    assert ended == [0, 0], errors
    # The first process logs for all.
    assert f"step {STEPS}/{STEPS}" in errors[0]
    assert "process 1 of 2" in errors[0]
    assert "step" not in errors[1]
    assert_same(two, run_here(recipe, tmp_path / "one", SPREAD))


def test_a_signal_to_one_process_before_the_first_step_ends_all(recipe, tmp_path):
    points = {0: "compile", 1: "compile:usr1"}
    ended, errors = run_in(2, 2, recipe, tmp_path / "run", SPREAD, points)
    assert ended == [128 + signal.SIGTERM] * 2, errors
    assert "stopped by SIGTERM before the first step; there was noth" in errors[0]
    assert "error" not in "".join(errors)


def test_a_run_continues_in_fewer_processes_after_any_end(recipe, tmp_path):
    run = tmp_path / "run"
    # One of four is asked to stop: all do, at the same step, which is saved.
    ended, errors = run_in(4, 1, recipe, run, DIVIDED, {3: "term:2"})
    assert ended == [128 + signal.SIGTERM] * 4, errors
    stopped = re.search(r"stopped by SIGTERM at step (\d+)", errors[0])
    assert stopped and 2 <= int(stopped[1]) < 30
    assert "Traceback" not in "".join(errors)

    # The second of two is killed; then the first, which the runtime depends on.
    ended, errors = run_in(2, 2, recipe, run, DIVIDED, {1: "write:32:train"})
    assert ended == [GONE, -signal.SIGKILL], errors
    assert f"from the checkpoint of step {stopped[1]}" in errors[0]
    assert "process 1 of 2 no longer responds" in errors[0]
    assert "continues from step 30" in errors[0]
    for point in ("join", "save:36"):
        ended, errors = run_in(2, 2, recipe, run, DIVIDED, {0: point})
        assert ended == [-signal.SIGKILL, GONE], errors
        assert "process 1: error: process 0 no longer responds" in errors[1]

    run_here(recipe, run, DIVIDED)
    assert_same(run, run_here(recipe, tmp_path / "one", DIVIDED))


# Replaces the package, and records its calls.
WANDB = """
import json, pathlib

class Run:
    def __init__(self, folder):
        self.file = pathlib.Path(folder) / "wandb.jsonl"

    def log(self, values, step):
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\\n")

    def finish(self):
        pass

def init(**options):
    run = Run(options["dir"])
    run.log({"id": options["id"]}, 0)
    return run
"""
EVERYTHING = (
    *("--config.keep_best=loss", "--config.keep_checkpoints=3"),
    *("--config.ema_decay=0.9", "--config.bad_update=skip"),
    *("--config.profile_steps=34,35", "--config.wandb_project=digits"),
    # All agree after each evaluation; only the one at the last step ends the run.
    *("--config.patience=2", "--config.patience_min_delta=1e9"),
)


def test_two_processes_with_damage_and_every_optional_feature(
    recipe, tmp_path, monkeypatch
):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    paths = os.environ.get("PYTHONPATH", ""), str(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    options = (*SPREAD, *EVERYTHING)
    one, two = run_here(recipe, tmp_path / "one", options), tmp_path / "two"
    shutil.copytree(one, two)
    shutil.rmtree(two / "profile")
    for step, part in ((36, "optimizer"), (40, "ema")):
        files = (two / f"checkpoints/{step}/{part}").rglob("d/*")
        file = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    ended, errors = run_in(2, 2, recipe, two, options, launched=by_open_mpi)
    assert ended == [0, 0], errors
    for said in errors:
        assert "checkpoints/40 is damaged" in said
        assert "Using the one before it, step 32" in said
    assert "resuming from the checkpoint of step 32" in errors[0]
    assert_same(two, one, evaluations=6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        load_params(two, ema=True),
        load_params(one, ema=True),
    )
    there = {path.name for path in (two / "checkpoints").iterdir()}
    assert there == {"32", "36", "40", "36.damaged", "40.damaged"}
    traces = (two / "profile").rglob("*.xplane.pb")
    folders = {path.relative_to(two / "profile").parts[0] for path in traces}
    assert folders == {"process_0", "process_1"}
    told = list(map(json.loads, (two / "wandb.jsonl").read_text().splitlines()))
    [first, second] = [line["id"] for line in told if "id" in line]
    assert first == second
    assert {line["step"] for line in told if "train/loss" in line} == {*range(1, 41)}
