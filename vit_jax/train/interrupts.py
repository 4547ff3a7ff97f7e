"""SIGTERM and Ctrl-C become a request that the training loop honours between steps."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

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


class Interrupts:
    """While entered, notes the first SIGTERM or SIGINT; the second ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python refuses handlers that are set in another thread.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes batches on; raises StopRequest once a signal has arrived."""
        for batch in batches:
            if self.received is not None:
                raise StopRequest
            yield batch

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        # Not by print: the signal may have come in the middle of another one.
        os.write(2, _NOTED)
        self.__exit__()
