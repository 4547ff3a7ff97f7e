"""Connecting processes; tests/end_to_end/test_processes.py runs several of them."""

import logging
import subprocess
import sys

import jax
import pytest

from vit_jax.errors import UserError
from vit_jax.train.processes import cluster

VARIABLES = cluster._LAUNCHERS.keys()


@pytest.fixture(autouse=True)
def started_by_nobody(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def asked(monkeypatch):
    """Records the arguments of JAX's `initialize`, which finds no environment."""
    calls = []

    def initialize(**arguments):
        calls.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_a_single_process_joins_nothing(asked):
    with cluster.together():
        assert cluster.first()
        assert cluster.agreed("step", 3) == 3
    assert not asked


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        (
            "SLURM_NTASKS",
            "4",
            ("SLURM has several", "=4", "start the command with srun"),
        ),
        ("OMPI_COMM_WORLD_SIZE", "2", ("Open MPI", "--process_id=$OMPI_COMM_WORLD_R")),
        ("TPU_WORKER_HOSTNAMES", "a,b", ("Cloud TPU", "on every host of the slice")),
        ("TPU_PROCESS_ADDRESSES", "a:1,b:1", ("Cloud TPU", "on every host")),
        ("JOB_COMPLETION_INDEX", "0", ("Kubernetes", "jax[k8s]", "COMPLETION_INDEX")),
    ],
)
def test_a_pod_whose_environment_one_process_lacks(
    asked, monkeypatch, variable, value, parts
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as error, cluster.together():
        pass
    assert len(asked) == 1
    for part in (*parts, "coordinator_address should be", "--num_processes=1"):
        assert part in str(error.value)
    with cluster.together(num_processes=1):
        assert cluster.first()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLURM_NTASKS", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")],
)
def test_one_process_of_a_cluster_is_alone(asked, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with cluster.together():
        pass
    assert not asked


def test_a_pod_of_which_only_one_process_started(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match="only one process has joined"):
        cluster.together().__enter__()


def test_a_tpu_without_environment_variables_is_one_host(asked, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    tpu = [("a Google TPU", "")]
    monkeypatch.setattr(cluster, "accelerators", lambda: iter(tpu))
    with cluster.together():
        pass
    assert len(asked) == 1
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with cluster.together():
        pass
    assert len(asked) == 1


def test_flags_are_passed_to_jax_unchanged(asked):
    with pytest.raises(UserError, match="pass all of --coordinator_address, --num"):
        cluster.together("host:1", 2).__enter__()
    [given] = asked
    assert (given["coordinator_address"], given["num_processes"]) == ("host:1", 2)
    assert given["process_id"] is None


def test_other_processes_do_not_repeat_warnings_about_the_same_data(monkeypatch):
    names = ("vit_jax", *cluster._SAME_EVERYWHERE)
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    try:
        cluster._speak_as(1)
        for name in ("vit_jax.data.sources.datasets", "vit_jax.weights.adapt"):
            assert not logging.getLogger(name).isEnabledFor(logging.WARNING)
            assert logging.getLogger(name).isEnabledFor(logging.ERROR)
        # These differ from process to process.
        assert logging.getLogger("vit_jax.data.loading").isEnabledFor(logging.WARNING)
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def raised(error, cause):
    try:
        raise error from cause
    except Exception as found:
        return found


def test_the_runtimes_message_is_found_below_other_errors():
    gone = jax.errors.JaxRuntimeError("UNAVAILABLE: recvmsg: Connection reset by peer")
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8")
    assert cluster._of_the_runtime(gone)
    assert cluster._of_the_runtime(ValueError("UNKNOWN: Gloo AllGather failed: ["))
    not_saved = raised(UserError("step 3 was not saved"), TimeoutError("barrier"))
    assert not cluster._of_the_runtime(not_saved)
    not_saved = raised(UserError("not saved"), raised(TimeoutError("barrier"), gone))
    assert cluster._of_the_runtime(not_saved)
    # A lack of memory is not a wait for other processes.
    assert not cluster._of_the_runtime(full)
    assert not cluster._of_the_runtime(raised(UserError("too little memory"), full))


def test_a_timed_out_wait_explains_what_to_do():
    code = """
import sys
from vit_jax.train.processes import cluster
cluster.START_TIMEOUT = 1
with cluster.together("localhost:" + sys.argv[1], 2, 0):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(_free_port())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "error: not all processes have joined within 1 seconds" in done.stderr
    assert "--num_processes=1" in done.stderr


def _free_port():
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
