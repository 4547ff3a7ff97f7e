"""What the shapes in a file tell of the model: its sizes, its blocks, its grid."""

import math
import re
from collections.abc import Iterable, Mapping

from vit_jax.errors import UserError
from vit_jax.weights.formats.layout import Hints, Shapes

Size = tuple[int, int]


def sizes(
    shapes: Shapes, dimensions: Mapping[str, int | None]
) -> list[tuple[int, ...]]:
    """Shapes of tensors that must be there, by name; None is any number of dimensions.

    Raises:
      UserError: lists all that are missing, empty or of another number of dimensions.
    """
    problems = []
    for name, expected in dimensions.items():
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif len(shapes[name]) != (expected or len(shapes[name])):
            problems.append(
                f"{name} has shape {shapes[name]}, expected {expected} dimensions"
            )
        elif not all(shapes[name]):
            problems.append(f"{name} is empty")
    if problems:
        raise UserError(
            f"the sizes of the model cannot be read off: {'; '.join(problems)}. "
            "The file is incomplete, or of another kind of model"
        )
    return [shapes[name] for name in dimensions]


def numbers(names: Iterable[str], start: str, separator: str) -> list[int]:
    """The n of names that begin with `start`, n and `separator`; each once, sorted."""
    # No more digits than any model needs: a damaged name must not become a huge number.
    pattern = re.compile(
        f"{re.escape(start)}(0|[1-9][0-9]{{0,3}}){re.escape(separator)}"
    )
    return sorted({int(match[1]) for name in names if (match := pattern.match(name))})


def grid_of(
    name: str,
    positions: int,
    prefixes: Iterable[int],
    patch_size: Size,
    hints: Hints,
    said: Size | None = None,
) -> tuple[int, Size]:
    """How many of the positions belong to no patch, and the grid of the others.

    The size that a companion names counts most, then any square, then the size that the
    caller names: that may be another one, to resize the positions to.

    Args:
      name: of the tensor, for the message.
      positions: how many there are.
      prefixes: how many may belong to other tokens, the most likely number first.
      patch_size: in pixels.
      hints: with the caller's image size.
      said: the companion's image size.

    Raises:
      UserError: none of these explains the number.
    """
    prefixes = list(prefixes)

    def square(count: int) -> Size | None:
        side = math.isqrt(max(count, 0))
        return (side, side) if side and side * side == count else None

    def of_size(size: Size | None):
        height, width = (
            (0, 0) if size is None else (size[i] // patch_size[i] for i in range(2))
        )
        return lambda count: (
            (height, width) if height and height * width == count else None
        )

    for find in (of_size(said), square, of_size(hints.image_size)):
        for prefix in prefixes:
            if grid := find(positions - prefix):
                return prefix, grid
    count = max(positions - prefixes[0], 0)
    raise UserError(
        f"{name} has {count} positions of patches, which is no "
        "square grid: pass the image size that the weights were trained at, "
        "image_size=(height, width)"
    )
