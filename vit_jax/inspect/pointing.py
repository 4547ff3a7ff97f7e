"""Pointing: how much of a map lies in a box."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from vit_jax.errors import UserError


class Pointing(NamedTuple):
    """The result of `pointing`.

    Attributes:
      hit: whether the center of the patch with the largest value is in the box; of
        equal ones, the first row by row.
      share: share of the map's positive mass that is in the box, 0…1; NaN without any.
    """

    hit: Bool[np.ndarray, " b"]
    share: Float[np.ndarray, " b"]


def pointing(
    maps: Float[Array | np.ndarray, "b gh gw"],
    boxes: Float[Array | np.ndarray, "b 4"],
    image_size: tuple[int, int],
) -> Pointing:
    """Asks of each map whether it points into a box (arXiv:1608.00507).

    There is no margin around the box. A patch that is partly in it counts with that
    part of its mass.

    Args:
      maps: values on the grid of patches.
      boxes: left, top, right and bottom in pixels of the model's input; the last two
        are the first column and row outside.
      image_size: height and width of the input in pixels.

    Raises:
      UserError: the boxes are empty, outside or not one for each map.
    """
    found, box = np.asarray(maps, np.float64), np.asarray(boxes, np.float64)
    (b, gh, gw), (h, w) = found.shape, image_size
    if box.shape != (b, 4):
        raise UserError(f"boxes have shape {box.shape}; expected ({b}, 4)")
    left, top, right, bottom = box.T
    inside = (left >= 0) & (top >= 0) & (right <= w) & (bottom <= h)
    if not (inside & (left < right) & (top < bottom)).all():
        raise UserError(
            f"boxes={box.tolist()}: expected left < right ≤ {w} and top < bottom ≤ {h}"
        )
    row, column = np.divmod(found.reshape(b, -1).argmax(axis=1), gw)
    y, x = (row + 0.5) * h / gh, (column + 0.5) * w / gw
    hit = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    mass = np.maximum(found, 0)
    parts = (_covered(top, bottom, gh, h), mass, _covered(left, right, gw, w))
    covered, total = np.einsum("bi,bij,bj->b", *parts), mass.sum(axis=(1, 2))
    share = np.where(total > 0, covered / np.where(total > 0, total, 1), np.nan)
    return Pointing(hit, share)


def _covered(
    start: Float[np.ndarray, " b"], end: Float[np.ndarray, " b"], cells: int, size: int
) -> Float[np.ndarray, "b cells"]:
    """Returns the share of each cell of an axis that is between two pixels."""
    edges = np.arange(cells + 1) * size / cells
    low = np.maximum(edges[:-1], start[:, None])
    high = np.minimum(edges[1:], end[:, None])
    return np.maximum(high - low, 0) * cells / size
