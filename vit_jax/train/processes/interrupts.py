"""Signals as requests to stop, which the training loop honours between steps.

`vit_jax.stop_signals` lists them. Before the first step there is nothing to save, and
the process ends at once: the first compilation may take longer than the sender of the
signal waits.

With several processes, all stop at the same step, whichever of them got the signal:
JAX's runtime, which takes over SIGTERM, agrees on that step.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import jax
from jax.experimental import multihost_utils

from vit_jax.stop_signals import BY_PEOPLE, stop_signals

T = TypeVar("T")


class Interrupted(BaseException):
    """The end of a run that was asked to stop and has saved, so that it can continue.

    Like KeyboardInterrupt, it is not an Exception, so that nothing catches it by
    accident.
    """

    def __init__(self, signal_number: int, step: int):
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} at step {step}; the checkpoint is saved, and the same "
            "command continues from there"
            if step
            else f"stopped by {name} before the first step; there was nothing to save"
        )
        # The status that a shell reports for a process ended by this signal.
        self.exit_status = 128 + signal_number


_NOTED = b"stopping: the step in progress is finished and saved first"
_TWICE = b"; a second Ctrl-C or SIGTERM ends the run at once"


class StopRequest(Exception):
    """A request to stop, which leaves an evaluation unfinished to be repeated later."""


# Shared by all runs of this process, because the runtime has one counter.
_questions = itertools.count(1)

# Set once this run has made a step or is about to.
something_to_save = threading.Event()


def end_process(status: int) -> NoReturn:
    """Ends this process and its children at once, whatever other threads wait for."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


class Interrupts:
    """A context that notes signals which ask the run to stop.

    Ctrl-C or SIGTERM, sent a second time, ends the process. Other signals never do:
    terminals and schedulers repeat them, or send SIGTERM soon after. With several
    processes, SIGTERM belongs to the runtime, and a second one has no effect. Until
    `begin` is called, a signal that ends a process by default does so, with a message,
    even during a compilation, when Python's handlers do not run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._together = jax.process_count() > 1
        self._previous: dict[int, Any] = {}
        self._ending: set[int] = set()  # signals that end the process by default
        self._wakeup: tuple[int, int] | None = None  # our descriptor, the previous one

    def __enter__(self) -> Self:
        something_to_save.clear()
        # Python allows handlers to be set in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._watch_signals()
            for number in stop_signals():
                if self._together and number == signal.SIGTERM:
                    continue
                handler = self._pass_on if self._together else self._note
                self._previous[number] = signal.signal(number, handler)
                if self._previous[number] == signal.SIG_DFL:
                    self._ending.add(number)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go(self._previous)
        self._ending.clear()  # the thread may still have signals of this run to read
        if self._wakeup:
            ours, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(ours)  # ends the thread
            self._wakeup = None

    def begin(self) -> None:
        """Notes that from now on there is something to save; call it before a step."""
        something_to_save.set()

    def requested(self) -> bool:
        """Whether to stop here; all processes must call it in the same places."""
        agree = multihost_utils.reached_preemption_sync_point
        if self._together and not self.received and agree(next(_questions)):
            self.received = signal.SIGTERM
        return self.received is not None

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; raises StopRequest when a stop is requested."""
        for batch in batches:
            if self.requested():
                raise StopRequest
            yield batch

    def _let_go(self, numbers: Iterable[int]) -> None:
        """Sets the handlers that these signals had before."""
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous[number])

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if number in BY_PEOPLE:
            self._let_go(BY_PEOPLE)

    def _note(self, number: int, _: FrameType | None) -> None:
        again, insists = self.received is not None, number in BY_PEOPLE
        self.received = self.received or number
        if something_to_save.is_set() and (insists or not again):
            _say(_NOTED + _TWICE * insists)
        if insists:
            self._let_go(BY_PEOPLE)

    def _watch_signals(self) -> None:
        """Starts a thread that reads the signal numbers that the C handler writes."""
        reader, ours = os.pipe()
        os.set_blocking(ours, False)
        self._wakeup = ours, signal.set_wakeup_fd(ours, warn_on_full_buffer=False)

        def watch() -> None:
            while number := os.read(reader, 1):
                if number[0] in self._ending and not something_to_save.is_set():
                    self._end_at_once(number[0])
            os.close(reader)

        threading.Thread(target=watch, daemon=True, name="interrupts").start()

    def _end_at_once(self, number: int) -> None:
        if self._together:
            # The runtime notifies all processes, whose `Peers` then end them.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            interrupted = Interrupted(number, 0)
            _say(str(interrupted).encode())
            end_process(interrupted.exit_status)


def _say(text: bytes) -> None:
    # Not with print: a signal may arrive in the middle of another one. And the terminal
    # whose end was signalled cannot be written to.
    with contextlib.suppress(OSError):
        os.write(2, text + b"\n")
