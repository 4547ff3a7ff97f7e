"""Preparation of images ahead of the model, in order and in bounded memory."""

import collections
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.loading.batches import cores
from vit_jax.errors import UserError
from vit_jax.prediction.inputs import Input


class Prepared(NamedTuple):
    """The model's input of one image, or the reason why there is none."""

    name: str
    pixels: np.ndarray | None  # uint8 [h, w, c]
    error: UserError | None = None


def prepared(
    inputs: Iterator[Input], prepare: Callable[[Any, str], np.ndarray], ahead: int
) -> Iterator[Prepared]:
    """Prepares images in threads, in the order of the inputs.

    Args:
      inputs: the images; consumed in the thread that iterates over the result.
      prepare: function of what an input reads and its name; called in several threads.
      ahead: number of images that may be waiting for the consumer.
    """
    waiting: collections.deque[Future[Prepared]] = collections.deque()
    pool = ThreadPoolExecutor(cores(), "prepare")
    try:
        for item in inputs:
            if item.now:
                done: Future[Prepared] = Future()
                done.set_result(_prepared(item, prepare))
                waiting.append(done)
            else:
                waiting.append(pool.submit(_prepared, item, prepare))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batches(images: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Groups images so that each batch but the last has `size` readable ones."""
    batch: list[Prepared] = []
    readable = 0
    for image in images:
        batch.append(image)
        readable += image.error is None
        # Many unreadable images are reported without waiting for readable ones.
        if readable == size or len(batch) == 2 * size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


def overlapped(
    batches: Iterator[list[Prepared]], start: Callable[[list[Prepared]], Any]
) -> Iterator[tuple[list[Prepared], Any]]:
    """Starts each batch before the results of the one before it are used.

    `start` dispatches the computation without waiting for it, so that the device
    computes while the next images are taken and the last results are used.
    """
    running = ((batch, start(batch)) for batch in batches)
    before = next(running, None)
    for current in itertools.chain(running, [None]):
        if before is not None:
            yield before
        before = current


def _prepared(item: Input, prepare: Callable[[Any, str], np.ndarray]) -> Prepared:
    try:
        return Prepared(item.name, prepare(item.read(), item.name))
    except UserError as error:
        return Prepared(item.name, None, error)
    except Exception as error:  # one bad image costs one result, whatever it raises
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{item.name} cannot be prepared: {reason}"
        return Prepared(item.name, None, UserError(message))
