"""Enlarged images of which only the kept part is made.

An image of 1 × 4,000 pixels that is resized to a shorter side of 256 has a million
columns, of which the crop that follows keeps a few hundred.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.decode import Opened, whole
from vit_jax.data.transforms.resizing import PILLOWS, Size, resize_image
from vit_jax.words import times

# Results up to this size are made completely, like those that a crop keeps a sixteenth
# of: then every pixel is OpenCV's or Pillow's own.
_ORDINARY_PIXELS = 2**22
_ORDINARY_SHARE = 1 / 16
_CUBIC = -0.75  # OpenCV's parameter of its cubic kernel


def resize_or_defer(image: Opened, size: Size, interpolation: str) -> Opened:
    """Resizes an image, or defers it if the result is extraordinarily large.

    Args:
      image: uint8 [h, w, c].
      size: (height, width).
      interpolation: a key of `resizing.INTERPOLATIONS`.
    """
    pixels = whole(image)
    height, width = pixels.shape[:2]
    if size[0] * size[1] <= max(_ORDINARY_PIXELS, height * width):
        return resize_image(pixels, size, interpolation)
    return Enlarged(pixels, size, interpolation)


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """A resized image with more pixels than its source.

    Attributes:
      source: uint8 [h, w, c].
      size: (height, width) of the result.
      interpolation: a key of `resizing.INTERPOLATIONS`.
    """

    source: np.ndarray
    size: Size
    interpolation: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.size, self.source.shape[2])

    def decode(self) -> np.ndarray:
        """Makes all pixels; raises ValueError if there are too many."""
        limit = Image.MAX_IMAGE_PIXELS or 0
        if self.size[0] * self.size[1] > limit:
            raise ValueError(
                f"resizing {times(self.source.shape[:2])} to {times(self.size)} pixels "
                f"needs more than the {limit:,} allowed. Let a crop to a fixed "
                "size follow directly, or remove the image"
            )
        return resize_image(self.source, self.size, self.interpolation)

    def __getitem__(self, box: tuple[slice, slice]) -> np.ndarray:
        """Makes the pixels of one box.

        They are those of `decode()[box]`, within one grey level if the box is a small
        share of it.
        """
        rows, columns = box
        kept = (rows.stop - rows.start) * (columns.stop - columns.start)
        if kept >= self.size[0] * self.size[1] * _ORDINARY_SHARE:
            return self.decode()[box]
        if self.interpolation in PILLOWS:
            return self._by_pillow(rows, columns)
        values, sums = self.source, []
        for axis, part in enumerate((rows, columns)):
            index, weights = _taps(
                self.source.shape[axis], self.size[axis], part, self.interpolation
            )
            # The part of the source that is needed, which may be a small one.
            first, last = index.min(), index.max()
            values = values[(slice(None),) * axis + (slice(first, last + 1),)]
            sums.append((index - first, weights))
        for axis, (index, weights) in enumerate(sums):
            values = _combined(values, axis, index, weights)
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    def _by_pillow(self, rows: slice, columns: slice) -> np.ndarray:
        (height, width), (new_height, new_width) = self.source.shape[:2], self.size
        how = PILLOWS[self.interpolation]
        left, right = (x * width / new_width for x in (columns.start, columns.stop))
        top, bottom = (y * height / new_height for y in (rows.start, rows.stop))

        def resized(plane: np.ndarray) -> np.ndarray:
            # Two passes, like Pillow's of the whole, because it rounds between them.
            image = Image.fromarray(plane)
            size = columns.stop - columns.start, height
            image = image.resize(size, how, (left, 0, min(right, width), height))
            size = size[0], rows.stop - rows.start
            box = 0, top, size[0], min(bottom, height)
            return np.asarray(image.resize(size, how, box))

        # Each plane alone: the fourth would be treated as alpha.
        return np.dstack([resized(x) for x in np.moveaxis(self.source, 2, 0)])


def _combined(
    values: np.ndarray, axis: int, index: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns weighted sums along one axis; `index` and `weights` are [n, taps]."""
    shape = [1] * values.ndim
    shape[axis] = len(index)
    return sum(
        np.take(values, index[:, tap], axis) * weights[:, tap].reshape(shape)
        for tap in range(index.shape[1])
    )  # type: ignore[return-value]


def _taps(
    old: int, new: int, part: slice, interpolation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which pixels are summed with which weights, in OpenCV's definition.

    Args:
      old: length of the source.
      new: length of the result.
      part: the part of the result to make.
      interpolation: one of OpenCV's.

    Returns:
      Indices and float32 weights, [length of the part, taps].
    """
    places = np.arange(part.start, part.stop, dtype=np.float64)
    centre = (places + 0.5) * (old / new) - 0.5
    low = np.floor(centre)
    if interpolation == "nearest":
        # OpenCV's versions round differently, so it says itself which pixel it takes.
        pixels = np.arange(old, dtype=np.float32)[None]
        nearest = cv2.resize(pixels, (new, 1), interpolation=cv2.INTER_NEAREST_EXACT)
        first, weights = nearest[0, part], [np.ones_like(centre)]
    elif interpolation == "bicubic":
        first, weights = low - 1, _cubic_weights(centre - low)
    else:
        first, beyond = low, centre - low
        if interpolation == "area":
            # Each pixel is as wide as the enlargement; only those on a border between
            # two source pixels are mixed.
            first = np.floor(places * (old / new))
            beyond = np.maximum(places + 1 - (first + 1) * (new / old), 0)
            beyond -= np.floor(beyond)
        weights = [1 - beyond, beyond]
    index = first.astype(np.int64)[:, None] + np.arange(len(weights))
    return np.clip(index, 0, old - 1), np.stack(weights, 1).astype(np.float32)


def _cubic_weights(beyond: np.ndarray) -> Sequence[np.ndarray]:
    """Returns Keys's kernel at the four pixels around a place between two of them."""
    a = _CUBIC
    near, far = beyond, 1 - beyond

    def inner(x):
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def outer(x):
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [outer(near + 1), inner(near), inner(far), outer(far + 1)]
