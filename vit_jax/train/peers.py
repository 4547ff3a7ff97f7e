"""A watch over the other processes of a run: when one is gone, all end with a word.

A step needs all processes, and waits for one that is gone. JAX's runtime notices in the
end and aborts, without saying what to do. Here each process signs in the runtime's own
key-value store every second; who has not signed for a while is gone, and who ends by an
error says so there.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn, Self

import jax
from jax._src import distributed  # its store has no public name

from vit_jax.checkpoints.reading import newest_step

logger = logging.getLogger(__name__)

# Exit status of a process that ends because another one is gone; sysexits.h has it for
# what is worth trying again.
GONE = 75
# Seconds without a sign after which a process is taken for dead.
SILENCE = 20.0
_PERIOD = 1.0  # seconds between signs
_PARTING = 5.0  # seconds that process 0, which has the store, stays for the others

# Folders of the store.
_ALIVE, _LEFT, _END = "vit_jax/alive/", "vit_jax/left/", "vit_jax/end/"


class Peers:
    """Watches while it is entered: ends this process when another is gone."""

    def __init__(self, index: int, count: int):
        """Watches nothing yet.

        Args:
          index: of this process.
          count: of all processes.
        """
        self._index, self._count = index, count
        self._client: Any = distributed.global_state.client
        self._address = distributed.global_state.coordinator_address or ""
        self._stopped = threading.Event()
        self._leaving = False
        # Why this process is to end: an exit status and a sentence.
        self._verdict: tuple[int, str] | None = None
        self._lost = False  # the store is gone
        self._out_of_touch = 0.0  # seconds since the store has last answered
        # Of each process the last sign, and for how many seconds there was no new one.
        self._signs = {str(other): ("", 0.0) for other in range(count)}
        self._threads = [
            threading.Thread(target=work, daemon=True, name=work.__name__)
            for work in (self._talk, self._judge)
        ]

    def __enter__(self) -> Self:
        _delay_aborts()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(_PARTING)

    def wait_for_verdict(self) -> None:
        """Gives the watch the time to find out that another process is gone.

        Returns only if none is.
        """
        time.sleep(SILENCE + 5 * _PERIOD)

    def leave(self, reason: str) -> None:
        """Tells the others that this process ends, and why; they end too."""
        self._leaving = True
        sentence = f"process {self._index} has stopped ({' '.join(reason.split())})"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first one counts
            self._client.key_value_set(f"{_END}why", f"1 {sentence[:500]}")
        self._sign_off()

    def wait_for_leavers(self) -> None:
        """Process 0 takes the store with it, so it is the last to end."""
        if self._index:
            return
        end = time.monotonic() + _PARTING
        expected = set(self._signs) - {"0"} - set(self._silent())
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < end and expected - self._read(_LEFT).keys():
                time.sleep(0.1)

    def _talk(self) -> None:
        """Exchanges signs. A call that gets no answer may take forever."""
        number = 0
        while not self._stopped.wait(_PERIOD):
            number += 1
            try:
                key = f"{_ALIVE}{self._index}"
                self._client.key_value_set(key, str(number), allow_overwrite=True)
                if self._index == 0:
                    self._read_signs()
                for end in self._read(_END).values():
                    status, _, sentence = end.partition(" ")
                    self._verdict = int(status), sentence
                self._out_of_touch = 0.0
            except jax.errors.JaxRuntimeError:
                self._lost = True

    def _judge(self) -> None:
        """Ends the process once there is a reason to."""
        tick = _PERIOD / 5
        while not self._stopped.wait(tick):
            # Counted and not measured: this process itself may have been suspended.
            self._out_of_touch += tick
            # The call may wait for a runtime that is about to abort.
            doubtful = self._out_of_touch > 2 * _PERIOD and _nobody_at(self._address)
            self._lost |= doubtful or self._out_of_touch > SILENCE
            if self._lost:
                self._verdict = GONE, "process 0 does not answer any more"
            if self._verdict and not self._leaving:
                self._end(*self._verdict)

    def _read_signs(self) -> None:
        # Counted here too: after a standstill of the machine all need time to sign.
        signs = self._read(_ALIVE)
        for other, (before, silent) in self._signs.items():
            sign = signs.get(other, "")
            self._signs[other] = sign, 0.0 if sign != before else silent + _PERIOD
        if gone := self._silent():
            who = ", ".join(gone)
            sentence = f"process {who} of {self._count} does not answer any more"
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{_END}why", f"{GONE} {sentence}")

    def _silent(self) -> list[str]:
        return [other for other, (_, silent) in self._signs.items() if silent > SILENCE]

    def _read(self, folder: str) -> dict[str, str]:
        found = self._client.key_value_dir_get(folder)
        return {name.removeprefix(folder): text for name, text in found}

    def _sign_off(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEFT}{self._index}", "")

    def _end(self, status: int, sentence: str) -> NoReturn:
        step = newest_step(_workdir) if _workdir else None
        logger.error(
            "error: %s; no step can be made without all processes, so this one ends "
            "too. The same command, in all of them again, %s.",
            sentence,
            f"goes on from step {step}" if step else "starts from the beginning",
        )
        if not self._lost:
            self._sign_off()
        self.wait_for_leavers()
        end_process(status)


def end_process(status: int) -> NoReturn:
    """Ends at once, whatever other threads wait for; children end too."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _nobody_at(address: str) -> bool:
    """Whether the host is there and nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PERIOD).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # not even that is known
        return False
    return False


_workdir: str | None = None


def going_on_in(workdir: str) -> None:
    """Where a process that ends finds out at which step the next start goes on."""
    global _workdir
    _workdir = workdir


def _delay_aborts() -> None:
    """Gives the watch some seconds to speak before the runtime aborts.

    Where process 0 dies, the runtime of the others aborts at once, and asks no Python.
    Here the handler of that signal is C's `sleep`, which takes the signal's number for
    its seconds: six. After that the abort goes on, as without a handler.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
