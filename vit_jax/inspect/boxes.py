"""Boxes around what a map singles out: the free crop box of attention, and TokenCut.

A map lies on the model's grid of patches; a box lies on an image of any size that the
grid covers, in pixels. No box is the outline of an object: nothing here was trained to
find any.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vit_jax.errors import Problems, UserError

MASS = 0.6  # share of the attention that is kept, as in DINO's pictures
PADDING = 1.0  # patches around what is kept
TAU = 0.2  # TokenCut: patches of a larger cosine are joined
EPSILON = 1e-5  # TokenCut: the weight between all others
# Shares that differ by less are equal: attention is computed in float32.
_ROUNDING = 1e-6


class Box(NamedTuple):
    """A rectangle of pixels: columns left…right − 1 of the rows top…bottom − 1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return max(self.right - self.left, 0) * max(self.bottom - self.top, 0)


class Found(NamedTuple):
    """A box and what it was drawn around.

    Attributes:
      box: the box in pixels of the image.
      region: the patches that it is drawn around.
      map: what they were chosen by: attention that sums to one, or TokenCut's vector,
        positive for most of the region.
      score: the share of the attention that lies in the region; or the eigenvalue of
        TokenCut's vector, which is the smaller the better the cut, and 0 for parts that
        nothing joins.
    """

    box: Box
    region: Bool[np.ndarray, "gh gw"]
    map: Float[np.ndarray, "gh gw"]
    score: float


def attention_box(
    attention: Float[np.ndarray, "gh gw"],
    image_size: tuple[int, int],
    *,
    mass: float = MASS,
    padding: float = PADDING,
    aspect: float | None = None,
) -> Found:
    """Draws a box around the patches that are attended to most.

    Keeps the largest values that make up `mass` of the sum, as DINO's
    visualize_attention.py does: of the values in ascending order, those at which the
    cumulated share exceeds 1 − mass. Where several values equal the smallest one kept,
    which DINO's sort takes some of, all are kept: a flat map yields the whole image.
    The region is the part that contains the maximum, connected by sides of patches.

    Args:
      attention: weights of any positive sum, such as the mean over heads of the row of
        the class token.
      image_size: (height, width) in pixels of the image that the grid covers.
      mass: the share of the attention that is kept, between 0 and 1.
      padding: patches that the box is larger on each side.
      aspect: width / height that the box is widened to, see `widened`.

    Raises:
      UserError: an argument is invalid, or the weights are not finite, or negative, or
        all zero.
    """
    check(mass=mass, padding=padding, aspect=aspect)
    weights = np.asarray(attention, np.float64)
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(
            "the attention has values that are not finite, or negative, or it is zero "
            "everywhere: the model's parameters are damaged or diverged"
        )
    weights = weights / weights.sum()
    region = _part(largest(weights, mass), int(weights.argmax()))
    box = box_of(region, image_size, padding=padding, aspect=aspect)
    return Found(box, region, weights, float(weights[region].sum()))


def largest(
    weights: Float[np.ndarray, "gh gw"], mass: float
) -> Bool[np.ndarray, "gh gw"]:
    """Returns which weights, that sum to one, are kept; see `attention_box`."""
    ascending = np.sort(weights, axis=None)
    kept = np.cumsum(ascending) > 1 - mass + _ROUNDING
    kept[-1] = True  # at least the maximum, however small the mass
    return weights >= ascending[kept.argmax()]


def tokencut_box(
    keys: Float[np.ndarray, "gh gw d"],
    image_size: tuple[int, int],
    *,
    padding: float = PADDING,
    aspect: float | None = None,
    centred: bool = False,
    tau: float = TAU,
    epsilon: float = EPSILON,
) -> Found:
    """Draws a box around the part of an image that a normalised cut separates.

    TokenCut (arXiv:2202.11539): patches are the nodes of a graph whose edges weigh 1
    where the cosine of two keys exceeds `tau`, else `epsilon`. With the weights E and
    their sums D, (D − E) y = λ D y has the relaxed cut y at its second smallest λ. The
    foreground is y > mean(y), or the rest if that has the seed, the patch of the
    largest |y|. The region is the part of the foreground that contains the seed,
    connected by sides of patches.

    A vector that is added to all keys changes no attention, because softmax cancels it;
    but it changes the cosines. Keys of DINOv2 have so much in common that all patches
    are joined, and there is no cut. `centred` subtracts their mean over the patches
    first, which the paper does not.

    The matrices have a row for each patch: 1,369 patches take some seconds.

    Args:
      keys: the keys of the patches in the last block, the channels of all heads.
      image_size: (height, width) in pixels of the image that the grid covers.
      padding: patches that the box is larger on each side; the paper's has none.
      aspect: width / height that the box is widened to, see `widened`.
      centred: whether to subtract the mean key.
      tau: the cosine above which patches are joined.
      epsilon: the weight of the other edges, which keeps the graph connected.

    Raises:
      UserError: there are fewer than three patches, the keys are not finite, or all
        edges weigh the same, so that there is no cut.
    """
    from scipy.linalg import eigh

    keys = np.asarray(keys, np.float64)
    gh, gw, d = keys.shape
    if gh * gw < 3:
        raise UserError(
            f"TokenCut cuts between patches, but the input has only {gh * gw}: use a "
            "larger image_size"
        )
    if not np.isfinite(keys).all():
        raise UserError(
            "the keys are not finite: the model's parameters are damaged or diverged"
        )
    rows = keys.reshape(gh * gw, d)
    if centred:
        rows = rows - rows.mean(axis=0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.maximum(norms, np.finfo(np.float64).tiny)
    cosines = rows @ rows.T
    joined = cosines > tau
    between = joined[~np.eye(len(joined), dtype=bool)]
    if between.all() or not between.any():
        which = "all pairs" if between.any() else "no pair"
        other = "attention" if centred else "tokencut_centred, or attention"
        raise UserError(
            f"there is no cut: {which} of patches have keys of a cosine above {tau} "
            f"(the smallest is {cosines.min():.2f}). Use another method: {other}"
        )
    edges = np.where(joined, 1.0, epsilon)
    degrees = np.diag(edges.sum(axis=1))
    values, vectors = eigh(degrees - edges, degrees, subset_by_index=[1, 1])
    y = vectors[:, 0]
    seed = int(np.abs(y).argmax())
    foreground = y > y.mean()
    if not foreground[seed]:
        foreground, y = ~foreground, -y
    region = _part(foreground.reshape(gh, gw), seed)
    box = box_of(region, image_size, padding=padding, aspect=aspect)
    return Found(box, region, y.reshape(gh, gw), max(float(values[0]), 0.0))


def box_of(
    region: Bool[np.ndarray, "gh gw"],
    image_size: tuple[int, int],
    *,
    padding: float = 0.0,
    aspect: float | None = None,
) -> Box:
    """Returns the smallest box of whole pixels that contains a region of patches.

    Patch (i, j) covers i·height/gh … (i + 1)·height/gh by j·width/gw … of the image,
    whatever size it was resized to for the model. So boxes need no mapping back.

    Args:
      region: the patches, at least one.
      image_size: (height, width) in pixels of the image that the grid covers.
      padding: patches that the box is larger on each side, unless the image ends.
      aspect: width / height that the box is widened to, see `widened`.

    Raises:
      UserError: an argument is invalid.
    """
    check(padding=padding, aspect=aspect)
    sides = []
    for axis, pixels in enumerate(image_size):
        patches = region.shape[axis]
        at = np.flatnonzero(region.any(axis=1 - axis))
        first = max(at[0] - padding, 0.0) * pixels / patches
        last = min(at[-1] + 1 + padding, patches) * pixels / patches
        # Not a pixel more because a product of fractions is off by its rounding.
        sides.append((math.floor(first + 1e-6), math.ceil(last - 1e-6)))
    (top, bottom), (left, right) = sides
    box = Box(left, top, right, bottom)
    return box if aspect is None else widened(box, image_size, aspect)


def widened(box: Box, image_size: tuple[int, int], aspect: float) -> Box:
    """Widens a box to an aspect, and never cuts anything of it off.

    The side that is too short grows on both ends alike, or more on one where the image
    ends on the other. If the image is too short, the side is the image's.

    Args:
      box: the box.
      image_size: (height, width) of the image in pixels.
      aspect: width / height.

    Raises:
      UserError: the aspect is not a positive number.
    """
    check(aspect=aspect)
    height, width = image_size
    columns, rows = box.right - box.left, box.bottom - box.top
    left, right = _grown(box.left, box.right, round(rows * aspect), width)
    top, bottom = _grown(box.top, box.bottom, round(columns / aspect), height)
    return Box(left, top, right, bottom)


def covered(box: Box, other: Box) -> float:
    """Returns the share of `other` that lies in `box`."""
    return _common(box, other) / other.area


def overlap(box: Box, other: Box) -> float:
    """Returns the intersection of two boxes over their union (IoU)."""
    common = _common(box, other)
    return common / (box.area + other.area - common)


def check(
    *, mass: float = MASS, padding: float = PADDING, aspect: float | None = None
) -> None:
    """Checks what boxes are drawn by; see `attention_box`.

    Raises:
      UserError: names every argument that is invalid.
    """
    problems = []
    if not 0 < mass < 1:
        problems.append(
            f"mass={mass}: expected a share of the attention above 0 and below 1, such "
            "as 0.6"
        )
    if not 0 <= padding < math.inf:
        problems.append(
            f"padding={padding}: expected a number of patches, 0 or more, such as 1"
        )
    if aspect is not None and not 0 < aspect < math.inf:
        problems.append(f"aspect={aspect}: expected width / height, above 0")
    if problems:
        raise Problems(*problems)


def _common(box: Box, other: Box) -> int:
    corners = zip(box, other, strict=True)
    (left, top, right, bottom) = (
        pick(sides) for pick, sides in zip((max, max, min, min), corners, strict=True)
    )
    return Box(left, top, right, bottom).area


def _part(chosen: Bool[np.ndarray, "gh gw"], seed: int) -> Bool[np.ndarray, "gh gw"]:
    """Returns the part of what is chosen that is connected with a chosen patch."""
    from scipy.ndimage import label

    parts, _ = label(chosen)  # type: ignore[misc]
    return parts == parts.flat[seed]


def _grown(first: int, last: int, length: int, limit: int) -> tuple[int, int]:
    """Lengthens the range first…last − 1 within 0…limit − 1."""
    length = min(length, limit)
    missing = length - (last - first)
    if missing <= 0:
        return first, last
    first = min(max(first - missing // 2, 0), limit - length)
    return first, first + length
