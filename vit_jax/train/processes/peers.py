"""Detection of dead processes in a multi-process run, which ends the others too.

A step needs all processes, and waits for one that is gone. The heartbeat of JAX's
runtime notices after 100 seconds, or at once if process 0 dies, but then it aborts
every process with a C++ stack and without saying what to do; an abort that nothing
prevented was measured after 114 seconds, with exit status 134. So here each process
writes a sign to the runtime's key-value store every second. One that has not done so
for 20 seconds is gone, and one that ends with an error says so there. The others then
end with exit status 75 and a message that names the process and the step from which the
next start continues (docs/scaling.md). A parent process that watches this one for an
abort would be no shorter: it learns neither which process is gone nor why, would have
to filter the stack from the terminal, and does not exist in a notebook.
"""

import contextlib
import ctypes
import logging
import math
import signal
import socket
import threading
import time
from typing import Any, NoReturn, Self

import jax
from jax._src import distributed  # its store has no public name

from vit_jax.checkpoints.reading import newest_step
from vit_jax.train.processes.interrupts import (
    Interrupted,
    end_process,
    something_to_save,
)

logger = logging.getLogger(__name__)

# Exit status of a process that ends because another one is gone: EX_TEMPFAIL of
# sysexits.h, for failures that are worth a retry.
GONE = 75
# Seconds without a sign after which a process is considered dead.
SILENCE = 20.0
_PERIOD = 1.0  # seconds between signs
_TICK = 0.2  # seconds between two checks
_PARTING = 5.0  # seconds that process 0, which has the store, stays for the others

# Folders of the store.
_ALIVE, _LEFT, _END = "vit_jax/alive/", "vit_jax/left/", "vit_jax/end/"
# Key by which the runtime tells all processes that one of them got SIGTERM.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


def index_and_count() -> tuple[int, int]:
    """Returns the index of this process and the number of processes.

    JAX's own functions would first start the devices and wait for all processes.
    """
    state = distributed.global_state
    return state.process_id, state.num_processes


class Peers:
    """A context that ends this process when another one is gone."""

    def __init__(self) -> None:
        """Makes the threads, which start on entry."""
        self._index, self._count = index_and_count()
        self._client: Any = distributed.global_state.client
        self._address = distributed.global_state.coordinator_address or ""
        self._stopped = threading.Event()
        # Why this process ends, if it ends with an error, and whether the others know.
        self._reason, self._told = "", threading.Event()
        # The exit status of this process once it is done and needs the others no more.
        self._done: int | None = None
        # Why this process has to end: an exit status and a sentence.
        self._verdict: tuple[int, str] | None = None
        self._lost = False  # the store is gone
        self._out_of_touch = 0.0  # seconds since the store last answered
        # Process → its last sign, and the seconds without a new one.
        self._signs = {str(other): ("", 0.0) for other in range(self._count)}
        self._threads = [
            threading.Thread(target=work, daemon=True, name=work.__name__)
            for work in (self._talk, self._judge)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(_PARTING)

    def wait_for_verdict(self) -> None:
        """Waits long enough to detect that another process is gone.

        Returns only if none is.
        """
        time.sleep(SILENCE + 5 * _PERIOD)

    def leave(self, reason: str) -> None:
        """Tells the others that this process ends, and why, so that they end too."""
        self._reason = f"process {self._index} has stopped ({' '.join(reason.split())})"
        if not self._told.wait(_PARTING):  # if the store is gone, there is no answer
            self.wait_for_verdict()

    def part(self, status: int) -> None:
        """Waits until all processes are done; if one is gone, ends with the status."""
        self._done = status
        self._sign_off()
        self._wait_for(set(self._signs), math.inf)
        if self._index == 0:
            time.sleep(3 * _TICK)  # the others have to read the sign-offs too

    def wait_for_leavers(self) -> None:
        """Makes process 0, which has the store, wait until the others have left."""
        if self._index == 0:
            self._wait_for(set(self._signs) - {"0"} - set(self._silent()), _PARTING)

    def _talk(self) -> None:
        """Exchanges signs; a call that gets no answer may take forever."""
        number = 0
        while not self._stopped.wait(_PERIOD):
            number += 1
            try:
                key = f"{_ALIVE}{self._index}"
                self._client.key_value_set(key, str(number), allow_overwrite=True)
                if self._index == 0:
                    self._read_signs()
                if not something_to_save.is_set():
                    self._stop_if_asked()
                if self._reason and not self._told.is_set():
                    self._end_all(1, self._reason[:500])
                    self._sign_off()
                    self._told.set()
                for end in self._read(_END).values():
                    status, _, sentence = end.partition(" ")
                    self._verdict = int(status), sentence
                self._out_of_touch = 0.0
            except jax.errors.JaxRuntimeError:
                self._lost = True

    def _judge(self) -> None:
        """Ends the process once there is a reason to."""
        while not self._stopped.wait(_TICK):
            # Counted, not measured: this process itself may have been suspended.
            self._out_of_touch += _TICK
            # The call in `_talk` may wait for a runtime that is about to abort.
            doubtful = self._out_of_touch > 2 * _PERIOD and _nobody_at(self._address)
            self._lost |= doubtful or self._out_of_touch > SILENCE
            if self._lost:
                self._verdict = GONE, "process 0 no longer responds"
            if self._verdict and self._done is not None:
                end_process(self._done)
            # If the store is gone, an error is most likely a consequence of that.
            speaks_for_itself = self._told.is_set() if self._lost else self._reason
            if self._verdict and not speaks_for_itself:
                self._end(*self._verdict)

    def _read_signs(self) -> None:
        # Counted here too: after the machine was suspended, all need time to sign.
        signs = self._read(_ALIVE)
        for other, (before, silent) in self._signs.items():
            sign = signs.get(other, "")
            self._signs[other] = sign, 0.0 if sign != before else silent + _PERIOD
        if gone := self._silent():
            who = f"process {', '.join(gone)} of {self._count}"
            self._end_all(GONE, f"{who} no longer responds")

    def _stop_if_asked(self) -> None:
        """Ends all on SIGTERM; while they may compile, they cannot agree on a step."""
        try:
            self._client.key_value_try_get(_NOTICE)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return
        stopped = Interrupted(signal.SIGTERM, 0)
        self._end_all(stopped.exit_status, str(stopped))

    def _end_all(self, status: int, sentence: str) -> None:
        """Tells all processes to end with this status; the first call of any counts."""
        try:
            self._client.key_value_set(f"{_END}why", f"{status} {sentence}")
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def _silent(self) -> list[str]:
        return [other for other, (_, silent) in self._signs.items() if silent > SILENCE]

    def _read(self, folder: str) -> dict[str, str]:
        found = self._client.key_value_dir_get(folder)
        return {name.removeprefix(folder): text for name, text in found}

    def _wait_for(self, others: set[str], seconds: float) -> None:
        """Waits until these processes have signed off, or the store is gone."""
        end = time.monotonic() + seconds
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < end and others - self._read(_LEFT).keys():
                time.sleep(_TICK)

    def _sign_off(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEFT}{self._index}", "")

    def _end(self, status: int, sentence: str) -> NoReturn:
        step = newest_step(_workdir) if _workdir else None
        if status in (1, GONE):
            logger.error(
                "error: %s; a step needs all processes, so this one ends too. The same "
                "command, run again in all of them, %s.",
                sentence,
                f"continues from step {step}" if step else "starts from the beginning",
            )
        elif self._index == 0:
            logger.warning(sentence)
        if not self._lost:
            self._sign_off()
        self.wait_for_leavers()
        end_process(status)


def _nobody_at(address: str) -> bool:
    """Whether the host is up but nothing listens at the address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PERIOD).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)  # others: unknown
    return False


_workdir: str | None = None


def going_on_in(workdir: str) -> None:
    """Sets the directory in which an ending process finds the step to resume from."""
    global _workdir
    _workdir = workdir


def delay_aborts() -> None:
    """Gives `Peers` some seconds to log its message before the runtime aborts.

    If process 0 dies, the runtime of the others aborts at once, without running Python.
    Here the handler of that signal is C's `sleep`, which takes the signal's number as
    seconds: six. After that, the abort continues as without a handler.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
