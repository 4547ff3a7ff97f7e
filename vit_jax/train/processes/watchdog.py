"""A watchdog that reports work that takes far longer than usual, with all stacks.

A run that waits for a disk, a network or another process looks like one that works. The
usual time for a kind of work (a step, a batch of an evaluation, a save) is the median
of the last ones.
"""

import collections
import faulthandler
import logging
import statistics
import tempfile
import threading
import time
from typing import Any, Self

logger = logging.getLogger(__name__)

# In seconds. Work that takes less is never reported;
AT_LEAST = 60.0
# and work of a kind that was never done before is reported after this time.
AT_LEAST_FIRST = 600.0
_TIMES_THE_USUAL = 10
_REMEMBERED = 50  # of each kind


class Watchdog:
    """A context with a thread that watches the work and only logs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._kind, self._since, self._told = "", 0.0, 0.0
        self._usual: dict[str, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_REMEMBERED)
        )
        self._thread = threading.Thread(
            target=self._watch, daemon=True, name="watchdog"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._thread.join()

    def begin(self, kind: str) -> None:
        """Ends the work begun before and begins to time another; "" = none."""
        now = time.monotonic()
        with self._lock:
            before, took, told = self._kind, now - self._since, self._told
            if before:
                self._usual[before].append(took)
            self._kind, self._since, self._told = kind, now, 0.0
        if told:
            logger.warning("%s has taken %.0f s and is done", before, took)

    def _watch(self) -> None:
        while not self._left.wait(AT_LEAST / 20):
            with self._lock:
                kind, usual = self._kind, self._usual.get(self._kind)
                took = time.monotonic() - self._since
                limit, often = AT_LEAST_FIRST, "never done before"
                if usual:
                    median = statistics.median(usual)
                    limit = max(AT_LEAST, _TIMES_THE_USUAL * median)
                    often = f"usually {median:.2g} s"
                # Report again when it has taken twice as long.
                late = kind and took > max(limit, 2 * self._told)
                if late:
                    self._told = took
            if late:
                logger.warning(
                    "%s is still not done after %.0f s (%s); stacks of all "
                    "threads:\n%s",
                    kind,
                    took,
                    often,
                    _traces(),
                )


def _traces() -> str:
    """Returns the stacks of all threads."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().rstrip()
