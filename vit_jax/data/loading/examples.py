"""Loading of single examples: their random draws, and images that cannot be read."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.data.decode import DecodeError, UnsuitableImage
from vit_jax.data.sources.protocol import Example, Source
from vit_jax.data.transforms.chains import Size
from vit_jax.errors import UserError

REPLACEMENT_TRIES = 16
_NAMING = threading.Lock()
_CONSEQUENCES = {"replace": "replaced by another image", "skip": "left out"}

_log = logging.getLogger(__name__)
ExampleRow = dict[str, Any]  # arrays and numpy scalars of one example


class Chance(threading.local):
    """Random generators for the positions of the stream, one at a time per thread."""

    def __init__(self, seed: int):
        self._seed = seed
        self._bits = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._bits)
        self._start = self._bits.state

    def at(self, position: int) -> np.random.Generator:
        """Returns the generator of (seed, position), with nothing drawn from it yet."""
        # The counter's upper half is the position, its lower half counts the draws.
        # Setting it takes a tenth of the time of making a generator.
        self._start["state"]["counter"][2] = position
        self._bits.state = self._start
        return self._generator

    def __reduce__(self):  # for the loading processes
        return Chance, (self._seed,)


@dataclasses.dataclass
class Loader:
    """Loader of single examples; replaces or masks those that cannot be read."""

    source: Source
    channels: int
    sizes: Mapping[str, Size]  # column of images → (height, width)
    bad_images: str
    weighted: bool = False  # whether the mask is the example's weight
    _named: set[str] = dataclasses.field(default_factory=set)

    def load(self, index: int, views: Callable[[Example], ExampleRow]) -> ExampleRow:
        """Loads the example with this index, or what `bad_images` puts in its place.

        Args:
          index: the example's index in the source.
          views: makes the columns of images.

        Raises:
          DecodeError: it cannot be read, and `bad_images` is "error".
          UserError: none of the next examples can be read either.
        """
        try:
            return self._read(index, views, bad=0)
        except DecodeError as error:
            if self.bad_images == "error":
                raise
            self._name(error)
            if self.bad_images == "skip":
                return {**self.blank(), "bad": np.int32(1)}
            first = error
        unsuited = isinstance(first, UnsuitableImage)
        for step in range(1, REPLACEMENT_TRIES + 1):
            try:
                return self._read((index + step) % len(self.source), views, bad=1)
            except DecodeError as error:
                self._name(error)
                unsuited &= isinstance(error, UnsuitableImage)
        if unsuited:  # then the images are intact, and the remedy is in the message
            raise first
        raise UserError(
            f"{REPLACEMENT_TRIES + 1} images in a row cannot be read; the warnings "
            "above name the last ones. Check that the dataset was copied completely."
        )

    @property
    def row_bytes(self) -> int:
        """Memory of one row."""
        return sum(value.nbytes for value in self.blank().values())

    def blank(self) -> ExampleRow:
        """Makes a row that does not count: black images, label 0 and mask 0."""
        images = {
            name: np.zeros((*size, self.channels), np.uint8)
            for name, size in self.sizes.items()
        }
        return self._row(images, (), mask=0, bad=0)

    def _read(
        self, index: int, views: Callable[[Example], ExampleRow], bad: int
    ) -> ExampleRow:
        example = self.source[index]
        mask = example.weight if self.weighted else 1
        return self._row(views(example), example.label, mask, bad)

    def _row(self, images: ExampleRow, label: Any, mask: float, bad: int) -> ExampleRow:
        """Returns the arrays of an example; without a label it is 0, or all zeros."""
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
