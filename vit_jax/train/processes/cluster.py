"""Processes that train together: how they find each other, and how they part.

They use JAX's distributed runtime: one process per host (TPU) or per device (GPU), each
running the same command. Process 0 writes everything that others read; the rest are
quiet unless something is wrong.
"""

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.accelerators import accelerators
from vit_jax.errors import UserError
from vit_jax.train.memory import is_out_of_memory
from vit_jax.train.processes.interrupts import Interrupted, end_process
from vit_jax.train.processes.peers import Peers, delay_aborts, index_and_count

logger = logging.getLogger(__name__)

# All in seconds. How long the first process waits for the last one to be started;
START_TIMEOUT = 300
# how long until the runtime considers a process dead, which `Peers` does earlier;
HEARTBEAT_TIMEOUT = 100
# and how long the first process to finish waits for the others.
SHUTDOWN_TIMEOUT = 60

# Loggers whose warnings are about data, weights and config, which every process finds
# alike: the first one gives them.
_SAME_EVERYWHERE = (
    "vit_jax.data.sources.datasets",
    "vit_jax.train.start",
    "vit_jax.train.same_data",
    "vit_jax.weights",
)

# Environment variables that show that there are several processes → their launcher, the
# number of processes (None = unknown), and how to start all of them.
_EVERY_HOST = "start the same command on every host of the slice (docs/scaling.md)"
_LAUNCHERS: Mapping[str, tuple[str, Callable[[str], int | None], str]] = {
    "TPU_PROCESS_ADDRESSES": ("Cloud TPU", lambda v: len(v.split(",")), _EVERY_HOST),
    "TPU_WORKER_HOSTNAMES": ("Cloud TPU", lambda v: len(v.split(",")), _EVERY_HOST),
    "SLURM_NTASKS": ("SLURM", int, "start the command with srun"),
    "OMPI_COMM_WORLD_SIZE": (
        "Open MPI",
        int,
        "pass --coordinator_address=HOST:PORT of the first process, --num_processes="
        "$OMPI_COMM_WORLD_SIZE and --process_id=$OMPI_COMM_WORLD_RANK",
    ),
    "JOB_COMPLETION_INDEX": (
        "a Kubernetes job",
        lambda _: None,
        "install jax[k8s] and allow the job to read itself, or pass "
        "--coordinator_address=HOST:PORT of the first pod, --num_processes=COUNT and "
        "--process_id=$JOB_COMPLETION_INDEX (docs/scaling.md)",
    ),
}


@contextlib.contextmanager
def together(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the other processes of this run, if there are any, while inside.

    Nothing may have asked JAX for its devices before. Without arguments, JAX reads the
    environment of Cloud TPU, SLURM, Open MPI or Kubernetes. If one process ends with an
    error or dies, the others end too, with a message.

    Args:
      coordinator_address: host:port on which process 0 listens.
      num_processes: number of processes; 1 = only this one, whatever the environment
        says.
      process_id: index of this process, from 0.

    Raises:
      UserError: the environment shows several processes, but they cannot be joined.
        Errors from inside are raised again with the process's index.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address or None,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if num_processes == 1 or not _join(given):
        yield
        return
    index, count = index_and_count()
    if count == 1:
        yield
        return
    if index:
        _speak_as(index)
    try:
        with Peers() as peers:
            try:
                yield
            except Interrupted as stopped:  # happens in all processes
                _part(peers, stopped.exit_status)
                raise
            except BaseException as error:
                if _of_the_runtime(error):
                    # Most likely another process is gone; `Peers` will soon detect it.
                    peers.wait_for_verdict()
                peers.leave(f"{type(error).__name__}: {error}")
                atexit.register(_end_at_once, peers, getattr(error, "exit_status", 1))
                raise
            _part(peers, 0)
    except UserError as error:
        raise UserError(f"process {index} of {count}: {error}") from error


def first() -> bool:
    """Whether this process is the one that writes and reports for all."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes have called it with this name."""
    multihost_utils.sync_global_devices(name)


def as_the_first_says(answer: bool) -> bool:
    """Returns process 0's answer, in all processes, which may see files differently.

    All processes must call it in the same places.
    """
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def agreed(what: str, number: int) -> int:
    """Returns the number after checking that all processes have the same one.

    Raises:
      UserError: the numbers differ.
    """
    if jax.process_count() == 1:
        return number
    named = multihost_utils.process_allgather(np.int32(number)).tolist()
    if len(set(named)) > 1:
        listed = ", ".join(f"{what} {n} in process {k}" for k, n in enumerate(named))
        raise UserError(
            f"the processes see different files: {listed}. The work directory must be "
            "on a file system that all of them share; if it is, start again: some file "
            "systems show changes late."
        )
    return number


def _join(given: Mapping[str, Any]) -> bool:
    """Initialises JAX's runtime; returns whether there was anything to join."""
    explicit = any(value is not None for value in given.values())
    seen = {
        variable: launcher
        for variable, launcher in _LAUNCHERS.items()
        if variable in os.environ and _several(launcher[1](os.environ[variable]))
    }
    on_tpu = "cpu" not in os.environ.get("JAX_PLATFORMS", "") and any(
        "TPU" in name for name, _ in accelerators()
    )
    if not (explicit or seen or on_tpu):
        return False
    lines = ["pass all of --coordinator_address, --num_processes and --process_id"]
    lines = lines * explicit + [
        f"{name} has several processes ({variable}={os.environ[variable]}); {how}"
        for variable, (name, _, how) in seen.items()
    ]
    lines.append("to train in this process alone, pass --num_processes=1")
    remedies = "\n".join(f"  - {line}" for line in lines)

    def too_late() -> None:
        come = f"not all processes have joined within {START_TIMEOUT} seconds"
        print(f"error: {come}:\n{remedies}", file=sys.stderr)
        end_process(1)

    # The runtime itself would abort without telling the user why.
    timer = threading.Timer(START_TIMEOUT, too_late)
    timer.daemon = True
    timer.start()
    delay_aborts()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=START_TIMEOUT + 30,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        if not (explicit or seen):
            return False  # a TPU with a single host, which no variable shows
        raise UserError(
            f"the processes of this run cannot be joined ({error}):\n{remedies}"
        ) from error
    finally:
        timer.cancel()
    told = [launcher[1](os.environ[variable]) for variable, launcher in seen.items()]
    if index_and_count()[1] == 1 and any(count is not None for count in told):
        raise UserError(f"only one process has joined:\n{remedies}")
    return True


def _several(count: int | None) -> bool:
    return count is None or count > 1


def _speak_as(index: int) -> None:
    """Limits this process's log to its own warnings, prefixed with its index."""
    logging.getLogger("vit_jax").setLevel(logging.WARNING)
    for name in _SAME_EVERYWHERE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"process {index}: %(message)s"))


def _of_the_runtime(error: BaseException | None) -> bool:
    """Whether an error comes from XLA's runtime, directly or as its cause.

    Its messages start with a status, such as "UNAVAILABLE: ", whatever their class.
    """
    if error is None or is_out_of_memory(error):
        return False
    if re.match(r"[A-Z]+(_[A-Z]+)*: ", str(error)):
        return True
    return _of_the_runtime(error.__cause__ or error.__context__)


def _part(peers: Peers, status: int) -> None:
    """Waits for the other processes; their fate then no longer affects this one."""
    peers.part(status)
    atexit.register(end_process, status)


def _end_at_once(peers: Peers, status: int) -> NoReturn:
    """Ends this process without a shutdown, which would wait for processes gone."""
    peers.wait_for_leavers()
    end_process(status)
