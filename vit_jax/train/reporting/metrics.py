"""The metrics of a run as JSON lines, in TensorBoard, and on the terminal."""

import collections
import contextlib
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.workdir import METRICS_FILE, locate, write_atomically
from vit_jax.errors import UserError
from vit_jax.progress import make_bar, unwritable_ignored
from vit_jax.train.reporting.lines import open_lines
from vit_jax.train.reporting.wandb_run import WandbRun

TENSORBOARD = "tensorboard"


class MetricWriter:
    """A writer of WORKDIR/metrics.jsonl and WORKDIR/tensorboard; a context manager.

    A line is one JSON object, `{"step": 100, "split": "train", "loss": 0.25}`. Numbers
    are written so that reading them gives the same float64 again. JSON has no values
    that are not finite, so these are the strings "NaN", "Infinity" and "-Infinity":
    `float()` reads each of them, and null would not show which one it was.

    No pair of split and step is written twice, even by a run that resumes from a
    checkpoint: lines written after that checkpoint are removed first.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int,
        also: Sequence[WandbRun] = (),
        *,
        first: bool = True,
    ):
        """Opens the files, cut back to the step of the checkpoint.

        Args:
          workdir: the run's directory.
          resume_step: the step of the checkpoint that the run resumes from; 0 = none.
          also: others that get the same numbers; closed together with this writer.
          first: whether this is the first of a run's processes. The others remember the
            lines, and write nothing.

        Raises:
          UserError: the files cannot be read or written, or are not ours.
        """
        self._also = also
        self._file = locate(workdir) / METRICS_FILE
        self._writes = first
        with self._failures_explained():
            self._recorded = _cut_back(self._file, resume_step, write=first)
            if first:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._events = _Events(self._file.parent / TENSORBOARD, resume_step)
                self._stream = open_lines(self._file)

    def recorded(self, step: int, split: str) -> dict[str, Any] | None:
        """Returns the line, if this run has written it, now or before it resumed."""
        return self._recorded.get((step, split))

    def of_split(self, split: str) -> list[tuple[int, dict[str, Any]]]:
        """Returns step and line of everything written for a split."""
        lines = self._recorded.items()
        return [(step, line) for (step, of), line in lines if of == split]

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds a line and the same points for TensorBoard.

        Args:
          step: finished updates.
          split: the data that were measured: "train", "eval", …
          values: name → number; numpy and JAX scalars are read here.

        Raises:
          UserError: the disk is full, or the like.
        """
        if (step, split) in self._recorded:
            raise AssertionError(f"{split} metrics of step {step} are already written")
        numbers = {name: _number(value) for name, value in values.items()}
        line = {"step": int(step), "split": split}
        line |= {name: _json_value(number) for name, number in numbers.items()}
        if self._writes:
            with self._failures_explained():
                self._stream.write(json.dumps(line, allow_nan=False) + "\n")
                self._stream.flush()
            self.show(step, split, numbers)
        self._recorded[step, split] = line

    def show(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Writes points without a line, for numbers that differ between equal runs."""
        if not self._writes:
            return
        with self._failures_explained():
            self._events.write(step, split, numbers)
        for other in self._also:
            other.write(step, split, numbers)

    def flush(self) -> None:
        """Writes everything to the disk; call it before saving a checkpoint.

        Raises:
          UserError: the disk is full, or the like.
        """
        if not self._writes:
            return
        with self._failures_explained():
            self._stream.sync()
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files; may be called twice.

        Raises:
          UserError: the disk is full, or the like.
        """
        if not self._writes or self._stream.closed:
            return
        with self._failures_explained(), contextlib.ExitStack() as stack:
            # In reverse order, and each of them whatever the others raise: a file that
            # stays open reports its failure again when Python exits.
            for other in self._also:
                stack.callback(other.close)
            stack.callback(self._stream.close)
            stack.callback(self._events.close)
            stack.callback(self.flush)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type | None, *_: Any) -> None:
        try:
            self.close()
        except UserError:
            # This must not hide the exception that ended the run.
            if exception_type is None:
                raise

    @contextlib.contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written to {error.filename or self._file} "
                f"({error.strerror}); fix that and run the same command again to "
                "continue from the last checkpoint."
            ) from error


class Progress:
    """A progress report on standard error; a context manager.

    On a terminal it is a progress bar; elsewhere (a log file, a notebook) each update
    is a plain line. It never stops a run: if standard error is gone, it is silent.
    """

    def __init__(self, total_steps: int, start: int, *, first: bool = True):
        """Prepares the report; nothing is shown before `with`.

        Args:
          total_steps: finished updates at the end of the run.
          start: finished updates when this process started.
          first: whether this is the first of a run's processes; only that one shows
            anything.
        """
        self._shown = first
        self._total = total_steps
        self._start = start
        self._bar: Any = None
        self._task: Any = None
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        with unwritable_ignored():
            if self._shown and sys.stderr is not None and sys.stderr.isatty():
                self._bar = make_bar()
                self._task = self._bar.add_task(
                    "", total=self._total, completed=self._start, text="starting"
                )
                self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            with unwritable_ignored():
                self._bar.stop()
            self._bar = None

    def update(
        self, step: int, *, loss: float, images_per_second: float, waiting: float
    ) -> None:
        """Shows the current state of the run.

        Args:
          step: finished updates.
          loss: loss of the last step, or the mean since the last update.
          images_per_second: rate since the last update.
          waiting: share of that time, 0 to 1, in which steps waited for data.
        """
        text = (
            f"loss {loss:.4f} | {images_per_second:,.0f} images/s | "
            f"{self._time_left(step)} left | {waiting:.0%} waiting for data"
        )
        with unwritable_ignored():
            if self._bar is not None:
                self._bar.update(self._task, completed=step, text=text)
            elif self._shown and sys.stderr is not None:
                line = f"step {step}/{self._total} | {text}"
                print(line, file=sys.stderr, flush=True)

    def _time_left(self, step: int) -> str:
        # Measured from the first update on, which leaves out compiling and includes
        # evaluations and checkpoints, which will happen again.
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = self._first or (step, now)
            return "0:00:00" if step >= self._total else "?"
        first_step, first_time = self._first
        seconds = (now - first_time) / (step - first_step) * (self._total - step)
        return str(timedelta(seconds=math.ceil(seconds)))


class Stopwatch:
    """A stopwatch for speed and the share of time that steps wait for data."""

    def __init__(self) -> None:
        self._begun = self._since = time.monotonic()
        self._waited = 0.0
        self._spent: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        before = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - before
            self._waited += seconds
            self._spent["waiting"] += seconds

    @contextlib.contextmanager
    def stopped(self, doing: str) -> Iterator[None]:
        """Leaves out the time spent inside, in which no steps are made."""
        before = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - before
            self._since += seconds
            self._spent[doing] += seconds

    def spent(self) -> dict[str, float]:
        """Returns seconds since the stopwatch was made: in "steps", and elsewhere."""
        whole = time.monotonic() - self._begun
        return {"steps": whole - sum(self._spent.values()), **self._spent}

    def lap(self, images: int) -> dict[str, float]:
        """Returns `images_per_second` and `waiting` (0 to 1) since the last lap."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        waited = self._waited
        self._since, self._waited = now, 0.0
        return {"images_per_second": images / seconds, "waiting": waited / seconds}


class _Events:
    """A TensorBoard file, written in the caller's thread.

    tensorboardX's own SummaryWriter hands events to a thread. That thread ends when the
    disk is full, and every later write then waits forever.
    """

    def __init__(self, directory: Path, resume_step: int):
        with _torch_hidden():
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter

        protobuf: Any = event_pb2  # its classes are made at run time
        # The run itself reports numbers that are not finite.
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._local = directory, directory
        if in_bucket(directory):  # written here, and copied at every flush
            self._local = Path(tempfile.mkdtemp(prefix="vit_jax_events_"))
        # TensorBoard wants the time and the machine in the name. The process ID makes
        # it unique: otherwise a file of the same second would be overwritten.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._writer = RecordWriter(str(self._local / f"{name}.{os.getpid()}"))
        version = protobuf.Event(wall_time=time.time(), file_version="brain.Event:2")
        start = protobuf.Event(
            wall_time=time.time(),
            # Makes TensorBoard purge points of earlier files from this step on.
            step=resume_step + 1,
            session_log=protobuf.SessionLog(status=protobuf.SessionLog.START),
        )
        for event in (version, start):
            self._writer.write(event.SerializeToString())
        self._writer.flush()

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        protobuf: Any = event_pb2
        for name, number in numbers.items():
            summary = scalar(f"{split}/{name}", float(number))
            event = protobuf.Event(wall_time=time.time(), step=step, summary=summary)
            self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        self._writer.flush()
        if self._local is not self._directory:
            for file in self._local.iterdir():
                (self._directory / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            if self._local is not self._directory:
                shutil.rmtree(self._local, ignore_errors=True)


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Keeps tensorboardX from importing PyTorch, which it does if it is installed."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyright: ignore
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


def _cut_back(
    file: Path, resume_step: int, *, write: bool
) -> dict[tuple[int, str], dict[str, Any]]:
    """Removes lines after `resume_step` and a torn last line; returns the others.

    Without `write`, the file stays as it is.
    """
    if not file.exists():
        return {}
    text = file.read_bytes().decode("utf-8", errors="replace")
    # A line is complete if it ends with a newline; text after the last one is torn.
    lines = text.split("\n")[:-1]
    kept: list[str] = []
    recorded = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            key = (int(values["step"]), str(values["split"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{file}, line {number} is not a line of metrics: {line[:80]!r}; "
                "remove that line (or the file) and start again."
            ) from None
        if key[0] <= resume_step:
            kept.append(line + "\n")
            recorded[key] = values
    if write and (rest := "".join(kept)) != text:
        write_atomically(file, rest)
    return recorded


def _number(value: Any) -> int | float:
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"a metric must be a number, got {value!r}")
    return number


def _json_value(number: int | float) -> int | float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
