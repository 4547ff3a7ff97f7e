"""Progress of a command on standard error: a bar on a terminal, elsewhere a few lines.

Standard output is for results, so nothing is written there.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

# Seconds between two lines where standard error is a file or a pipe.
_EVERY = 30.0


class Progress:
    """A progress report of a task; a context manager.

    It never stops a command: if standard error is gone, it is silent.
    """

    def __init__(
        self, doing: str, total: int | None, *, unit: str = "images", shown: bool = True
    ):
        """Prepares the report; nothing is shown before `with`.

        Args:
          doing: the task, such as "evaluating".
          total: how many units there are; None = unknown.
          unit: what is counted.
          shown: False shows nothing at all.
        """
        self._doing, self._total, self._unit = doing, total, unit
        self._shown = shown
        self._done = 0
        self._bar: Any = None
        self._task: Any = None
        # Time and count of the first units: whatever came before them, such as
        # compiling, tells nothing about the time that is left.
        self._first: tuple[float, int] | None = None
        self._reported = time.monotonic()

    def __enter__(self) -> Self:
        self._reported = time.monotonic()
        with unwritable_ignored():
            if self._shown and sys.stderr is not None and sys.stderr.isatty():
                self._bar = make_bar()
                self._task = self._bar.add_task("", total=self._total, text=self._doing)
                self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            with unwritable_ignored():
                self._bar.stop()
            self._bar = None

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Says what is being done inside, such as "compiling", before units count."""
        with unwritable_ignored():
            if self._bar is not None:
                self._bar.update(self._task, text=text)
            elif self._shown and sys.stderr is not None:
                print(f"{text} …", file=sys.stderr, flush=True)
        yield
        with unwritable_ignored():
            if self._bar is not None:
                self._bar.update(self._task, text=self._doing)

    def advance(self, count: int = 1) -> None:
        """Counts finished units; shows them at once, or as a line now and then."""
        self._done += count
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._done
        with unwritable_ignored():
            text = f"{self._doing}{self._pace(now)}"
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done, text=text)
            elif self._shown and sys.stderr and now >= self._reported + _EVERY:
                self._reported = now
                of = "" if self._total is None else f"/{self._total:,}"
                counted = f"{self._done:,}{of} {self._unit}"
                text = f"{self._doing}: {counted}{self._pace(now)}"
                print(text, file=sys.stderr, flush=True)

    def _pace(self, now: float) -> str:
        """Writes the speed and, if the total is known, the time that is left."""
        assert self._first is not None
        since, count = self._first
        if now <= since or self._done <= count:
            return ""
        rate = (self._done - count) / (now - since)
        pace = f", {rate:,.0f} {self._unit}/s"
        if self._total is None:
            return pace
        seconds = math.ceil(max(self._total - self._done, 0) / rate)
        return f"{pace}, {timedelta(seconds=seconds)} left"


def make_bar() -> Any:
    """Makes a bar of Rich with a task's count and its field `text`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    whole = Column(no_wrap=True)
    return Bar(
        MofNCompleteColumn(table_column=whole),
        BarColumn(bar_width=20, table_column=Column(ratio=1, max_width=20)),
        # Names may hold square brackets, which would be read as markup.
        TextColumn("{task.fields[text]}", markup=False, table_column=whole),
        console=Console(stderr=True),
        # Standard output is for results and must stay redirected as the user wants.
        redirect_stdout=False,
    )


@contextlib.contextmanager
def unwritable_ignored() -> Iterator[None]:
    """Ignores that standard error cannot be written."""
    # OSError: the terminal or the log's disk is gone; ValueError: stderr is closed.
    with contextlib.suppress(OSError, ValueError):
        yield
