"""Forward passes over a stream of images, whose results come in order."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.prediction.stream import Prepared, batches, overlapped


class Prediction(NamedTuple):
    """The result of one image."""

    image: str  # path or address; "image 3" for the fourth if it has neither
    top: list[tuple[str, float]]  # (class name, probability); empty after an error
    error: UserError | None = None  # the reason why the image has no result


class Passes:
    """The forward passes of a model over images."""

    def __init__(
        self,
        rank: Callable[[np.ndarray], tuple[Any, Any]],
        name: Callable[[int], str],
        *,
        batch_size: int,
        after_error: bool = True,
    ):
        """Sets the model.

        Args:
          rank: function of uint8 images [b, h, w, c] that computes the classes to show
            and their values, both [b, k], without waiting for them.
          name: function from a class to its name.
          batch_size: the most images per pass.
          after_error: whether images after one that cannot be read have results.
        """
        self._rank, self._name = rank, name
        self._batch_size, self._after_error = batch_size, after_error
        self._failed = self._full = False

    def __call__(self, images: Iterator[Prepared]) -> Iterator[Prediction]:
        """Yields a prediction for each image."""
        passes = overlapped(batches(images, self._batch_size), self._start)
        for batch, ranked in passes:
            tops = self._tops(ranked)
            for image in batch:
                top = [] if image.error else next(tops, [])
                yield Prediction(image.name, top, image.error)

    def _start(self, batch: list[Prepared]) -> tuple[Any, Any] | None:
        pixels = [image.pixels for image in batch if image.pixels is not None]
        self._failed |= len(pixels) < len(batch)
        if not pixels or (self._failed and not self._after_error):
            return None
        # Pad to a power of two, so that few programs are compiled for many counts. What
        # is left after full batches uses their program.
        count = len(pixels)
        self._full |= count == self._batch_size
        rows = min(1 << (count - 1).bit_length(), self._batch_size)
        rows = self._batch_size if self._full else rows
        padding = [(0, rows - count), (0, 0), (0, 0), (0, 0)]
        return self._rank(np.pad(np.stack(pixels), padding))

    def _tops(
        self, ranked: tuple[Any, Any] | None
    ) -> Iterator[list[tuple[str, float]]]:
        """Yields the names and values of each row, padding included."""
        if ranked is None:
            return
        for classes, values in zip(*map(np.asarray, ranked), strict=True):
            names = map(self._name, classes.tolist())
            yield list(zip(names, values.tolist(), strict=True))
