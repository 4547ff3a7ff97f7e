"""The type of a chain's operations, and checks of their arguments."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vit_jax.data.decode import Opened
from vit_jax.data.transforms.resizing import Size
from vit_jax.words import did_you_mean

COLOURED = (1, 3)  # numbers of channels that operations on colours take: grey or RGB


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation with its arguments bound.

    Attributes:
      apply: (uint8 [h, w, c], random generator) → uint8 [h', w', c], which may be
        deferred (`decode.Deferred`).
      output_size: input size (None = unknown until there is an image) → output size.
        Raises ValueError if the input is too small.
      random: whether it draws from the generator.
      channels: numbers of channels that it takes; empty = any.
      cuts: whether it uses only the shape of its input and one box,
        image[rows, columns], so that no more than the box has to be decoded.
    """

    apply: Callable[[Any, np.random.Generator | None], Opened]
    output_size: Callable[[Size | None], Size | None]
    random: bool = False
    channels: tuple[int, ...] = ()
    cuts: bool = False

    def check(self, image: Opened) -> None:
        """Raises ValueError if the operation does not apply to this image."""
        height, width = image.shape[:2]
        self.output_size((height, width))
        if self.channels and image.shape[2] not in self.channels:
            raise ValueError(
                f"operations on colours take {' or '.join(map(str, self.channels))} "
                f"channels, the image has {image.shape[2]}"
            )


def keep_size(size: Size | None) -> Size | None:
    """Returns `size`: the `output_size` of operations that keep the size."""
    return size


def read_size(value) -> Size:
    """Reads a size, given as a number of pixels or as (height, width)."""
    pair = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    whole = [isinstance(side, int) and not isinstance(side, bool) for side in pair]
    if len(pair) != 2 or not all(whole) or min(pair) < 1:
        raise ValueError(
            f"the size must be a number of pixels or (height, width), not {value!r}"
        )
    return pair


def check_bounds(name: str, low, high) -> tuple[float, float]:
    """Checks that 0 < NAME_min ≤ NAME_max, and returns both."""
    if not _is_number(low) or not _is_number(high) or not 0 < low <= high:
        raise ValueError(
            f"{name}_min={low!r} and {name}_max={high!r} must be numbers with "
            f"0 < {name}_min ≤ {name}_max"
        )
    return low, high


def check_number(
    name: str, value, least: float, most: float, whole: bool = False
) -> None:
    """Checks that an argument is a number from `least` to `most`."""
    kind = "a whole number" if whole else "a number"
    if (
        not _is_number(value)
        or not least <= value <= most
        or (whole and not isinstance(value, int))
    ):
        bound = f"at least {least}" if most == np.inf else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r} must be {kind}, {bound}")


def check_choice(kind: str, name, known: Iterable[Any]) -> None:
    """Checks that an argument is one of the known names."""
    if name not in tuple(known):  # an unhashable value must not raise TypeError
        raise ValueError(unknown(kind, name, known))


def check_flag(name: str, value) -> None:
    """Checks that an argument is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def unknown(kind: str, name, known: Iterable[Any]) -> str:
    """Returns the message about an unknown name."""
    end = did_you_mean(name, known) or "."
    return f"no {kind} {name!r}{end} There are: {', '.join(known)}."


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
