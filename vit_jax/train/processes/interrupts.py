"""SIGTERM and Ctrl-C become a request that the training loop honours between steps.

Before a step was made there is nothing to save, and the process ends at once: the
first compilation may take longer than whoever asks has patience.

Of several processes all stop at the same step, whichever of them was asked: JAX's
runtime, which takes SIGTERM over, agrees on that step.
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

T = TypeVar("T")


class Interrupted(BaseException):
    """The run was asked to stop, has saved, and goes on when started again.

    Like KeyboardInterrupt no Exception, so that nothing catches it by accident.
    """

    def __init__(self, signal_number: int, step: int):
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} at step {step}; the checkpoint is saved and the same "
            "command goes on from there"
            if step
            else f"stopped by {name} before the first step; there was nothing to save"
        )
        # What a shell reports of a process that this signal has ended.
        self.exit_status = 128 + signal_number


_NOTED = (
    b"stopping: the step in progress is finished and saved first; once more ends the "
    b"run at once\n"
)


class StopRequest(Exception):
    """Leaves an evaluation half done; it will be done again."""


# Over all runs of this process, for the runtime has one clock.
_questions = itertools.count(1)

# Set once this run has made a step, or is about to.
something_to_save = threading.Event()


def end_process(status: int) -> NoReturn:
    """Ends at once, whatever other threads wait for; children end too."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


class Interrupts:
    """While entered, notes the first SIGTERM or SIGINT; the second ends the process.

    With several processes SIGTERM is the runtime's: the second one changes nothing.
    Until `begin` is called, a signal that would have ended the process before ends it,
    with a word: also in the middle of a compilation, where no handler of Python runs.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._together = jax.process_count() > 1
        self._previous: dict[int, Any] = {}
        self._ending: set[int] = set()  # signals that would have ended the process
        self._wakeup: tuple[int, int] | None = None  # ours, and the one before

    def __enter__(self) -> Self:
        something_to_save.clear()
        handlers: dict[int, Any] = {signal.SIGINT: self._note}
        if self._together:
            handlers = {signal.SIGINT: self._pass_on}
        else:
            handlers[signal.SIGTERM] = self._note
        # Python refuses handlers that are set in another thread.
        if threading.current_thread() is threading.main_thread():
            self._watch_signals()
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
                if self._previous[number] == signal.SIG_DFL:
                    self._ending.add(number)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()
        if self._wakeup:
            ours, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(ours)  # which ends the thread
            self._wakeup = None

    def begin(self) -> None:
        """From now on there is something to save; called before the first step."""
        something_to_save.set()

    def requested(self) -> bool:
        """Whether to stop here; all processes must ask in the same places."""
        agree = multihost_utils.reached_preemption_sync_point
        if self._together and not self.received and agree(next(_questions)):
            self.received = signal.SIGTERM
        return self.received is not None

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes batches on; raises StopRequest when a stop is requested."""
        for batch in batches:
            if self.requested():
                raise StopRequest
            yield batch

    def _let_go(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _pass_on(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._let_go()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if something_to_save.is_set():
            # Not by print: the signal may have come in the middle of another one.
            os.write(2, _NOTED)
        self._let_go()

    def _watch_signals(self) -> None:
        """Starts a thread that reads the signals' numbers, which C's handler writes."""
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
            # The runtime tells all of them, whose `Peers` then end them.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            interrupted = Interrupted(number, 0)
            os.write(2, f"{interrupted}\n".encode())
            end_process(interrupted.exit_status)
