"""Derivation of a model's sizes, blocks and grid from the shapes in a file."""

import math
import re
from collections.abc import Iterable, Mapping

from vit_jax.errors import UserError
from vit_jax.weights.formats.layout import Hints, Shapes
from vit_jax.words import times

Size = tuple[int, int]
_Found = tuple[int, Size]  # number of positions of other tokens, grid of the patches


def sizes(
    shapes: Shapes, dimensions: Mapping[str, int | None]
) -> list[tuple[int, ...]]:
    """Returns the shapes of required tensors.

    Args:
      shapes: the table's name → shape.
      dimensions: required name → its number of dimensions; None allows any number.

    Raises:
      UserError: lists all tensors that are missing, empty or have another number of
        dimensions.
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
            f"the sizes of the model cannot be determined: {'; '.join(problems)}. "
            "Use another copy if the file is incomplete; it may also hold another "
            "kind of model"
        )
    return [shapes[name] for name in dimensions]


def numbers(names: Iterable[str], start: str, separator: str) -> list[int]:
    """Lists the distinct n, sorted, of names that begin with `start`n`separator`."""
    # At most four digits, so that a damaged name does not become a huge number.
    pattern = re.compile(
        f"{re.escape(start)}(0|[1-9][0-9]{{0,3}}){re.escape(separator)}"
    )
    return sorted({int(match[1]) for name in names if (match := pattern.match(name))})


def patches(size: Size | None, patch_size: Size) -> Size:
    """Returns the grid of patches of an image; (0, 0) if the size is None."""
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
    """Splits a number of positions into those of other tokens and a grid of patches.

    The order of precedence is: the caller's `trained_image_size`, the companion's size,
    any square, and the caller's `image_size`. The last comes last because it may be
    another size, to which the positions will be resized.

    Args:
      name: name of the tensor, for messages.
      positions: number of positions.
      prefixes: possible numbers of positions of other tokens, the most likely first.
      patch_size: in pixels.
      hints: has the caller's image sizes.
      said: the companion's image size.
      assumed: gets a sentence if another grid would be possible as well.

    Returns:
      The number of positions of other tokens, and the grid (height, width).

    Raises:
      UserError: nothing explains the number, or `trained_image_size` contradicts it.
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
            f"trained_image_size={sure} has "
            f"{times(patches(sure, patch_size))} patches of {times(patch_size)} "
            f"pixels, but {name} has {expected} positions of patches: pass the size "
            "at which the weights were trained, or omit it"
        )
    squares = [
        (prefix, (side, side))
        for prefix, count in counts.items()
        if (side := math.isqrt(max(count, 0))) and side * side == count
    ]
    named = of_size(hints.image_size)
    if squares:
        # If several squares are possible, the caller's image_size decides.
        chosen = next((square for square in squares if square in named), squares[0])
        others = [other for other in squares + named if other != chosen]
        if others and assumed is not None:
            size = hints.image_size if set(others) & set(named) else "(height, width)"
            assumed.append(
                f"{name} may hold {' or '.join(map(_grid, [chosen, *others]))}: "
                f"assumed the first; if that is wrong, pass trained_image_size={size}"
            )
        return chosen
    if named:
        return named[0]
    raise UserError(
        f"{name} has {max(positions - next(iter(counts)), 0)} positions of patches, "
        "which is not a square grid: pass the image size at which the weights were "
        "trained, trained_image_size=(height, width), to vit_jax.load, or write a file "
        "that records it with python -m vit_jax.convert --trained_image_size=…"
    )


def _grid(found: _Found) -> str:
    prefix, grid = found
    before = f" after {prefix} other token{'s' * (prefix > 1)}" if prefix else ""
    return f"{times(grid)} patches{before}"
