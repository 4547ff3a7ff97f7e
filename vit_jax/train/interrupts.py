"""SIGTERM and Ctrl-C become a request that the training loop honours between steps.

Of several processes all stop at the same step, whichever of them was asked: JAX's
runtime, which takes SIGTERM over, agrees on that step.
"""

import itertools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

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


class Interrupts:
    """While entered, notes the first SIGTERM or SIGINT; the second ends the process.

    With several processes SIGTERM is the runtime's: the second one changes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._together = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        handlers: dict[int, Any] = {signal.SIGINT: self._note}
        if self._together:
            handlers = {signal.SIGINT: self._pass_on}
        else:
            handlers[signal.SIGTERM] = self._note
        # Python refuses handlers that are set in another thread.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

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

    def _pass_on(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.__exit__()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        # Not by print: the signal may have come in the middle of another one.
        os.write(2, _NOTED)
        self.__exit__()
