"""Order, batches, padding and masks; Grain does the reading and prefetching.

Batch k of training is a function of the seed and k alone: example `row` of it is at
position k · batch_size + row of an endless stream (see order.py), and its augmentation
draws from a generator of (seed, position). So any number of threads or processes, and
any batch to start at, give the same stream.
"""

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.decode import DecodeError
from vit_jax.data.loading.order import make_order
from vit_jax.data.preprocessing import Preprocessing, opened
from vit_jax.data.sources.protocol import Example, Source
from vit_jax.data.transforms.chains import Chain, Size
from vit_jax.errors import UserError

TRAIN_POLICIES = ("replace", "skip", "error")
EVAL_POLICIES = ("error", "skip")
REPLACEMENT_TRIES = 16
# Rows that one task of a thread loads: fewer cost more in passing them around than
# small images take to load, more make the first batch late.
_ROWS_PER_TASK = 16
_PREFETCHED_BATCHES = 2  # at least; bounds the memory that waiting images take

_log = logging.getLogger(__name__)
Row = dict[str, Any]  # arrays and numpy scalars of one example
Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator over batches that owns the threads or processes which load them.

    Use it as a context manager, or call `close`; its end and an error close it too.
    Afterwards none of its threads or processes is alive.

    Attributes:
      waiting_bytes: most memory that loaded images, waiting for their turn, can take.
    """

    def __init__(
        self,
        load_row: Callable[[int, int], Row],
        *,
        start: int,
        stop: int,
        rows: int,
        row_bytes: int,
        num_threads: int | None,
        num_processes: int = 0,
    ):
        """Starts nothing yet; loading begins with the first batch asked for.

        Args:
          load_row: (number of the batch, row in this process's part of it) → arrays.
          start: number of the first batch.
          stop: number after the last batch.
          rows: a batch has in this process.
          row_bytes: that a row takes.
          num_threads: None = one a core, 0 = load in the caller's thread when asked.
          num_processes: beside this one, each with so many threads. They escape
            Python's lock, which many threads wait for, and take seconds to start.
        """
        import grain  # not at import time: it takes a second

        task = _Task(load_row, rows, alone=not num_processes)
        tasks = task.per_batch
        threads = cores() if num_threads is None else num_threads
        buffer = max(_PREFETCHED_BATCHES * tasks // max(num_processes, 1), threads)
        buffer = buffer if threads else 0
        dataset = (
            grain.MapDataset.range(start * tasks, stop * tasks)
            .map(task)
            .to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
            )
        )
        if num_processes:
            # Of the tasks of a process some wait there, some on their way, some here.
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=num_processes, per_worker_buffer_size=max(buffer, 1)
                ),
                worker_init_fn=_prepare_process,
            )
        places = 3 * num_processes if num_processes else 1
        waiting = places * max(buffer, 1) + tasks
        if not num_processes:  # of a batch that is begun there is room for the whole
            waiting = -(-waiting // tasks) * tasks
        self.waiting_bytes = waiting * min(_ROWS_PER_TASK, rows) * row_bytes
        self._threads = task.threads
        self._iterator = iter(dataset.batch(tasks, batch_fn=_joined))
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            return next(self._iterator)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and "exit code" in str(error):
                raise UserError(
                    f"a process that loads images has died ({error}). Most often the "
                    "machine is out of memory: use fewer loader_processes"
                ) from error
            raise

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops loading and waits for the threads; calling it again does nothing."""
        self._closed = True
        self._iterator.close()
        while self._threads:
            self._threads.pop().join()


class _Task:
    """Number of a task → the rows of it, stacked. Copies of it work in processes."""

    def __init__(self, load_row: Callable[[int, int], Row], rows: int, alone: bool):
        self._load_row, self._rows, self._alone = load_row, rows, alone
        self.per_batch = -(-rows // _ROWS_PER_TASK)
        self.threads: set[threading.Thread] = set()  # that have worked here
        # Batches that tasks have begun: their arrays, and how many tasks are to come.
        self._begun: dict[int, tuple[Batch, int]] = {}
        self._lock = threading.Lock()

    def __call__(self, task: int) -> Batch:
        thread = threading.current_thread()
        if thread.name.startswith("grain"):
            self.threads.add(thread)
        batch, part = divmod(int(task), self.per_batch)
        first = part * _ROWS_PER_TASK
        last = min(first + _ROWS_PER_TASK, self._rows)
        loaded: Batch = {}
        for place, number in enumerate(range(first, last)):
            row = self._load_row(batch, number)
            if not loaded and self._alone:
                whole = self._whole(batch, row)
                loaded = {key: array[first:last] for key, array in whole.items()}
            elif not loaded:
                loaded = _empty(last - first, row)
            for key, value in row.items():
                loaded[key][place] = value
        return loaded

    def _whole(self, batch: int, row: Row) -> Batch:
        """Arrays of a whole batch, whose tasks write their rows where they belong."""
        with self._lock:
            arrays, to_come = self._begun.pop(batch, (None, self.per_batch))
            arrays = arrays or _empty(self._rows, row)
            if to_come > 1:
                self._begun[batch] = arrays, to_come - 1
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"threads": set(), "_lock": None}


def train_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Chain | Mapping[str, Chain],
    seed: int,
    start: int,
    stop: int,
    channels: int = 3,
    bad_images: str = "replace",
    rows: Sequence[int] | np.ndarray | None = None,
    num_threads: int | None = None,
    num_processes: int = 0,
    sampling: str = "uniform",
    repeats: int = 1,
) -> Batches:
    """Batches `start` to before `stop` of an endless, shuffled stream.

    Every epoch has every example once, unless `sampling` says otherwise; a batch may
    span the border of two.

    Args:
      source: the examples.
      batch_size: of all processes together.
      transform: training chain, applied to the decoded image; or, by name, that of
        each column of images. Each column is a view of the same image with chances of
        its own, which are drawn in the order of the names.
      seed: of order and augmentation.
      start: number of the first batch; to resume, the number of those consumed.
      stop: number after the last batch.
      channels: of the images.
      bad_images: what becomes of an image that cannot be read. "replace": the next
        readable example of the source stands in; "skip": a black image with mask 0;
        "error": DecodeError.
      rows: which of every batch this process gets; None = all of them.
      num_threads: that load images; None = one a core, 0 = none.
      num_processes: that load images, with so many threads each; 0 = none, threads of
        this process alone.
      sampling: "uniform", "balanced" or "weighted"; see `order.make_order`.
      repeats: how often an example stands in a batch; see there.

    Returns:
      Iterator of this process's rows (b = len(rows)): each column of images, by default
      `image`, uint8 [b, h, w, c]; label int32 [b], or float32 [b, classes] of zeros and
      ones; mask float32 [b], the example's weight unless it is sampled by it; bad int32
      [b], 1 where the image could not be read.

    Raises:
      UserError: a wrong argument; while iterating, what loading an image raises.
    """
    _check_policy(bad_images, TRAIN_POLICIES)
    numbers = _numbers(rows, batch_size)
    if seed < 0:
        raise UserError(f"seed={seed}: expected a number of at least 0")
    if repeats < 1 or batch_size % repeats:
        raise UserError(
            f"repeats={repeats}: every example is to stand {repeats} times in a batch, "
            f"so batch_size={batch_size} must be a multiple of it"
        )
    order = make_order(source, seed, sampling, repeats, batch_size)
    weighted = sampling != "weighted"  # else the weights have done their part
    chains = {"image": transform} if isinstance(transform, Chain) else dict(transform)
    sizes = {name: chain.image_size for name, chain in chains.items()}
    loader = _Loader(source, channels, sizes, bad_images, weighted)
    chance = _Chance(seed)

    def load_row(batch: int, row: int) -> Row:
        position = batch * batch_size + int(numbers[row])

        def views(example: Example) -> Row:
            image = opened(example.image, channels, example.name, fast=True)
            random = chance.at(position)
            return {
                name: chain(image, random, example.name)
                for name, chain in chains.items()
            }

        return loader.load(order[position], views)

    return Batches(
        load_row,
        start=start,
        stop=stop,
        rows=len(numbers),
        row_bytes=loader.row_bytes,
        num_threads=num_threads,
        num_processes=num_processes,
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    bad_images: str = "error",
    rows: Sequence[int] | np.ndarray | None = None,
    num_threads: int | None = None,
) -> Batches:
    """Every example exactly once, in order; the last batch is padded.

    Args:
      source: the examples.
      batch_size: of all processes together; need not divide the number of examples.
      preprocessing: decoding and the evaluation's transform.
      bad_images: "error", or "skip" to mask images that cannot be read.
      rows: which of every batch this process gets; None = all of them. All processes
        get as many batches.
      num_threads: as in `train_batches`.

    Returns:
      Iterator as of `train_batches`, and index int32 [b]: which example of the source,
      −1 for padding. Padding is black with label 0, mask 0.

    Raises:
      UserError: a wrong argument; DecodeError while iterating.
    """
    _check_policy(bad_images, EVAL_POLICIES)
    numbers = _numbers(rows, batch_size)
    sizes = {"image": preprocessing.image_size}
    loader = _Loader(source, preprocessing.channels, sizes, bad_images)

    def views(example: Example) -> Row:
        return {"image": preprocessing.prepare(example.image, example.name)}

    def load_row(batch: int, row: int) -> Row:
        index = batch * batch_size + int(numbers[row])
        if index >= len(source):
            return {**loader.blank(), "index": np.int32(-1)}
        return {**loader.load(index, views), "index": np.int32(index)}

    stop = -(-len(source) // batch_size)
    return Batches(
        load_row,
        start=0,
        stop=stop,
        rows=len(numbers),
        row_bytes=loader.row_bytes,
        num_threads=num_threads,
    )


class _Chance(threading.local):
    """A generator for each position of the stream; a thread has one at a time."""

    def __init__(self, seed: int):
        self._seed = seed
        self._bits = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._bits)
        self._start = self._bits.state

    def at(self, position: int) -> np.random.Generator:
        """The generator of (seed, position), at its start."""
        # The counter's upper half is the position, its lower half counts the draws. To
        # set it takes a tenth of the time that a new generator takes.
        self._start["state"]["counter"][2] = position
        self._bits.state = self._start
        return self._generator

    def __reduce__(self):  # for the processes that load
        return _Chance, (self._seed,)


@dataclasses.dataclass
class _Loader:
    """Loads single examples; keeps account of those that cannot be read."""

    source: Source
    channels: int
    sizes: Mapping[str, Size]  # of each column of images
    bad_images: str
    weighted: bool = False  # examples count by their weight
    _named: set[str] = dataclasses.field(default_factory=set)

    def load(self, index: int, views: Callable[[Example], Row]) -> Row:
        try:
            return self._read(index, views, bad=0)
        except DecodeError as error:
            if self.bad_images == "error":
                raise
            self._name(error)
            if self.bad_images == "skip":
                return {**self.blank(), "bad": np.int32(1)}
        for step in range(1, REPLACEMENT_TRIES + 1):
            try:
                return self._read((index + step) % len(self.source), views, bad=1)
            except DecodeError as error:
                self._name(error)
        raise UserError(
            f"{REPLACEMENT_TRIES + 1} images in a row cannot be read; the last ones "
            "are named above. Check that the dataset was copied completely."
        )

    @property
    def row_bytes(self) -> int:
        return sum(value.nbytes for value in self.blank().values())

    def blank(self) -> Row:
        images = {
            name: np.zeros((*size, self.channels), np.uint8)
            for name, size in self.sizes.items()
        }
        return self._row(images, (), mask=0, bad=0)

    def _read(self, index: int, views: Callable[[Example], Row], bad: int) -> Row:
        example = self.source[index]
        mask = example.weight if self.weighted else 1
        return self._row(views(example), example.label, mask, bad)

    def _row(self, images: Row, label: Any, mask: float, bad: int) -> Row:
        """The arrays of an example; without a label it is 0, or all zeros."""
        if self.source.multi_label:
            classes = np.zeros(self.source.num_classes, np.float32)
            classes[np.asarray(label, np.int32)] = 1
        else:
            classes = np.int32(0 if label == () else label)
        return {
            **images,
            "label": classes,
            "mask": np.float32(mask),
            "bad": np.int32(bad),
        }

    def _name(self, error: DecodeError) -> None:
        with _NAMING:
            new = str(error) not in self._named
            self._named.add(str(error))
        if new:
            _log.warning("%s (%s)", error, _CONSEQUENCES[self.bad_images])


_NAMING = threading.Lock()
_CONSEQUENCES = {"replace": "another image stands in", "skip": "left out"}


def _empty(rows: int, like: Row) -> Batch:
    return {key: np.empty((rows, *x.shape), x.dtype) for key, x in like.items()}


def _joined(parts) -> Batch:
    """The batch that the parts lie in; those of processes are put together."""
    batch = {key: part.base for key, part in parts[0].items()}
    if all(part[key].base is batch[key] is not None for part in parts for key in part):
        return batch
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _prepare_process(_index: int, _count: int) -> None:
    """In a process that loads images, before anything else."""
    # Ctrl-C goes to all processes of a terminal. The training run decides what becomes
    # of it, and closes this process in the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only; knows of containers' limits
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_policy(bad_images: str, allowed: tuple[str, ...]) -> None:
    if bad_images not in allowed:
        raise UserError(
            f"bad_images={bad_images!r}: expected one of {', '.join(allowed)}"
        )


def _numbers(
    rows: Sequence[int] | np.ndarray | None, batch_size: int
) -> Sequence[int] | np.ndarray:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected a number of at least 1")
    return range(batch_size) if rows is None else rows
