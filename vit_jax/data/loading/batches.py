"""Batches with padding and masks; Grain does the reading and prefetching.

Training batch k is a function of the seed and k alone: its example `row` is at position
k · batch_size + row of an endless stream (see order.py), and is augmented with a
generator seeded by (seed, position). The stream is therefore the same for any number of
threads and processes, and from any batch to start at.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from vit_jax.data import decode
from vit_jax.data.loading.examples import Chance, ExampleRow, Loader
from vit_jax.data.loading.order import make_order
from vit_jax.data.loading.processes import prepare_process, start_tracker
from vit_jax.data.preprocessing import Preprocessing, opened
from vit_jax.data.sources.protocol import Example, Source
from vit_jax.data.transforms.chains import Chain
from vit_jax.errors import UserError

TRAIN_POLICIES = ("replace", "skip", "error")
EVAL_POLICIES = ("error", "skip")
# Rows per task of a thread. With fewer, passing tasks around costs more than loading
# small images; with more, the first batch is late.
_ROWS_PER_TASK = 16
_PREFETCHED_BATCHES = 2  # at least; bounds the memory of waiting images

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator over batches that owns the threads or processes that load them.

    Use it as a context manager, or call `close`. It also closes at its end and on an
    error. None of its threads or processes is alive afterwards.

    Attributes:
      waiting_bytes: upper bound on the memory of images that are loaded and waiting.
    """

    def __init__(
        self,
        load_row: Callable[[int, int], ExampleRow],
        *,
        start: int,
        stop: int,
        rows: int,
        row_bytes: int,
        num_threads: int | None,
        num_processes: int = 0,
    ):
        """Prepares the iterator; loading begins when the first batch is requested.

        Args:
          load_row: (number of the batch, row in this process's part of it) → arrays.
          start: number of the first batch.
          stop: number after the last batch.
          rows: rows of a batch in this process.
          row_bytes: memory of one row.
          num_threads: None = one per core, 0 = load in the caller's thread on request.
          num_processes: additional processes, each with `num_threads` threads. They do
            not compete for Python's global lock, but take seconds to start.
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
            # Grain reads flags of its own, which our commands, with separate flags,
            # and notebooks never parse.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            start_tracker()
            # A process's tasks wait in three places: there, in transit, and here.
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=num_processes, per_worker_buffer_size=max(buffer, 1)
                ),
                worker_init_fn=prepare_process,
            )
        places = 3 * num_processes if num_processes else 1
        waiting = places * max(buffer, 1) + tasks
        if not num_processes:  # arrays are allocated for whole batches
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
                    f"a process that loads images has died ({error}). The usual cause "
                    "is too little memory: use fewer loader_processes"
                ) from error
            raise

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops loading and waits for the threads to end; may be called repeatedly."""
        self._closed = True
        self._iterator.close()
        while self._threads:
            self._threads.pop().join()


class _Task:
    """A function from the number of a task to its stacked rows.

    Loading processes work on copies of it.
    """

    def __init__(
        self, load_row: Callable[[int, int], ExampleRow], rows: int, alone: bool
    ):
        self._load_row, self._rows, self._alone = load_row, rows, alone
        self.per_batch = -(-rows // _ROWS_PER_TASK)
        self.threads: set[threading.Thread] = set()  # that have called this object
        # Unfinished batches: their arrays, and how many of their tasks have not begun.
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

    def _whole(self, batch: int, row: ExampleRow) -> Batch:
        """Returns the arrays of a whole batch, shared by the tasks that fill it."""
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
    white_level: float = 0.0,
    bad_images: str = "replace",
    rows: Sequence[int] | np.ndarray | None = None,
    num_threads: int | None = None,
    num_processes: int = 0,
    sampling: str = "uniform",
    repeats: int = 1,
    aligned: Collection[str] = (),
) -> Batches:
    """Loads batches `start` to `stop` (excluded) of an endless shuffled stream.

    Every epoch has each example once, unless `sampling` says otherwise. A batch may
    contain the end of one epoch and the start of the next.

    Args:
      source: the examples.
      batch_size: size of the global batch, over all processes.
      transform: the training chain, applied to the decoded image; or a chain for each
        column of images, by name. Each column is another view of the same image, with
        its own random draws, made in the order of the names.
      seed: seed of order and augmentation.
      start: number of the first batch; to resume, the number of batches consumed.
      stop: number after the last batch.
      channels: number of channels of the images.
      white_level: the value of white in deep images; see `Preprocessing`.
      bad_images: how to treat an image that cannot be read. "replace": use the next
        readable example of the source; "skip": give a black image with mask 0;
        "error": raise DecodeError.
      rows: the rows of every batch that this process gets; None = all of them.
      num_threads: threads that load images; None = one per core, 0 = none.
      num_processes: processes that load images, each with `num_threads` threads; 0 =
        only the threads of this process.
      sampling: "uniform", "balanced" or "weighted"; see `order.make_order`.
      repeats: how often an example occurs in a batch; see `order.make_order`.
      aligned: columns that make no draws of their own, but repeat those of the first
        column, and so show the same part of the image, mirrored or not.

    Returns:
      Iterator over this process's rows (b = len(rows)): each column of images, by
      default `image`, uint8 [b, h, w, c]; label int32 [b], or float32 [b, classes] of
      zeros and ones; mask float32 [b], the example's weight (1 if weights decide the
      sampling); bad int32 [b], 1 where the image could not be read.

    Raises:
      UserError: an argument is wrong; while iterating, any error of loading an image.
    """
    _check_policy(bad_images, TRAIN_POLICIES)
    numbers = _numbers(rows, batch_size)
    if seed < 0:
        raise UserError(f"seed={seed}: expected a number of at least 0")
    if repeats < 1 or batch_size % repeats:
        raise UserError(
            f"repeats={repeats}: every example occurs {repeats} times in a batch, so "
            f"batch_size={batch_size} must be a multiple of it"
        )
    order = make_order(source, seed, sampling, repeats, batch_size)
    weighted = sampling != "weighted"  # else the order already accounts for weights
    chains = {"image": transform} if isinstance(transform, Chain) else dict(transform)
    sizes = {name: chain.image_size for name, chain in chains.items()}
    loader = Loader(source, channels, sizes, bad_images, weighted)
    chance = Chance(seed)

    def load_row(batch: int, row: int) -> ExampleRow:
        position = batch * batch_size + int(numbers[row])

        def views(example: Example) -> ExampleRow:
            image = opened(example.image, channels, example.name, True, white_level)
            if len(chains) > 1:  # decoded once, not a part of it for each view
                image = decode.whole(image)
            random = chance.at(position)
            own = {
                name: chain(image, random, example.name)
                for name, chain in chains.items()
                if name not in aligned
            }
            repeated = {
                name: chains[name](image, chance.at(position), example.name)
                for name in aligned
            }
            return own | repeated

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
    """Loads every example exactly once, in order; the last batch is padded.

    Args:
      source: the examples.
      batch_size: size of the global batch, over all processes; need not divide the
        number of examples.
      preprocessing: decoding and the evaluation transform.
      bad_images: "error", or "skip" to mask images that cannot be read.
      rows: the rows of every batch that this process gets; None = all of them. All
        processes get the same number of batches.
      num_threads: see `train_batches`.

    Returns:
      Iterator over the columns of `train_batches` and index int32 [b]: the example's
      index in the source, −1 for padding. Padding is black, with label 0 and mask 0.

    Raises:
      UserError: an argument is wrong; while iterating, DecodeError.
    """
    _check_policy(bad_images, EVAL_POLICIES)
    numbers = _numbers(rows, batch_size)
    sizes = {"image": preprocessing.image_size}
    loader = Loader(source, preprocessing.channels, sizes, bad_images)

    def views(example: Example) -> ExampleRow:
        return {"image": preprocessing.prepare(example.image, example.name)}

    def load_row(batch: int, row: int) -> ExampleRow:
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


def _empty(rows: int, like: ExampleRow) -> Batch:
    return {key: np.empty((rows, *x.shape), x.dtype) for key, x in like.items()}


def _joined(parts) -> Batch:
    """Returns the batch that the parts are views of, or concatenates the parts.

    Parts that another process loaded are arrays of their own, in memory that the two
    processes share.
    """
    batch = {key: part.base for key, part in parts[0].items()}
    whole = all(isinstance(array, np.ndarray) for array in batch.values())
    if whole and all(part[key].base is batch[key] for part in parts for key in part):
        return batch
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only; respects containers' limits
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
