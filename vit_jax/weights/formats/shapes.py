"""What the shapes in a file tell of the model: its sizes, its blocks, its grid."""

import math
import re
from collections.abc import Iterable, Mapping

from vit_jax.errors import UserError
from vit_jax.weights.formats.layout import Hints, Shapes
from vit_jax.words import times

Size = tuple[int, int]
_Found = tuple[int, Size]  # positions of other tokens, and the grid of the others


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


def patches(size: Size | None, patch_size: Size) -> Size:
    """The grid that an image of this size is cut into; (0, 0) without one."""
    return (size[0] // patch_size[0], size[1] // patch_size[1]) if size else (0, 0)


def grid_of(
    name: str,
    positions: int,
    prefixes: Iterable[int],
    patch_size: Size,
    hints: Hints,
    said: Size | None = None,
    assumed: list[str] | None = None,
) -> tuple[int, Size]:
    """How many of the positions belong to no patch, and the grid of the others.

    The size that the caller is sure of counts most, then the one that a companion
    names, then any square, then the size that the caller names otherwise: that may be
    another one, to resize the positions to.

    Args:
      name: of the tensor, for messages.
      positions: how many there are.
      prefixes: how many may belong to other tokens, the most likely number first.
      patch_size: in pixels.
      hints: with the caller's image sizes.
      said: the companion's image size.
      assumed: gets a sentence where the number could mean another grid as well.

    Raises:
      UserError: none of these explains the number, or the size that the caller is sure
        of does not.
    """
    counts = {prefix: positions - prefix for prefix in prefixes}

    def of_size(size: Size | None) -> list[_Found]:
        grid = patches(size, patch_size)
        return [
            (prefix, grid)
            for prefix, count in counts.items()
            if 0 < count == grid[0] * grid[1]
        ]

    sure = hints.trained_image_size
    if found := of_size(sure) or ([] if sure else of_size(said)):
        return found[0]
    if sure:
        expected = " or ".join(str(max(count, 0)) for count in counts.values())
        raise UserError(
            f"trained_image_size={sure} is cut into "
            f"{times(patches(sure, patch_size))} patches of {times(patch_size)} "
            f"pixels, and {name} has {expected} positions of patches: pass the size "
            "that the weights were trained at, or leave it out"
        )
    squares = [
        (prefix, (side, side))
        for prefix, count in counts.items()
        if (side := math.isqrt(max(count, 0))) and side * side == count
    ]
    named = of_size(hints.image_size)
    if squares:
        # Of several, the size that the caller names decides.
        chosen = next((square for square in squares if square in named), squares[0])
        others = [other for other in squares + named if other != chosen]
        if others and assumed is not None:
            size = hints.image_size if set(others) & set(named) else "(height, width)"
            assumed.append(
                f"{name} may be of {' or of '.join(map(_grid, [chosen, *others]))}: "
                f"assumed the first; if that is wrong pass trained_image_size={size}"
            )
        return chosen
    if named:
        return named[0]
    raise UserError(
        f"{name} has {max(positions - next(iter(counts)), 0)} positions of patches, "
        "which is no square grid: pass the image size that the weights were trained "
        "at, trained_image_size=(height, width), to vit_jax.load, or let "
        "python -m vit_jax.convert --trained_image_size=… write a file that says it"
    )


def _grid(found: _Found) -> str:
    prefix, grid = found
    before = f" behind {prefix} other token{'s' * (prefix > 1)}" if prefix else ""
    return f"{times(grid)} patches{before}"
