"""Crops, resizes and flips."""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

from vit_jax.data.transforms.enlarged import resize_or_defer
from vit_jax.data.transforms.operations import (
    Operation,
    check_bounds,
    check_choice,
    check_flag,
    check_number,
    keep_size,
    read_size,
)
from vit_jax.data.transforms.resizing import INTERPOLATIONS, Size, resize_image
from vit_jax.words import times

ROUNDINGS: dict[str, Callable[[float], int]] = {"nearest": round, "down": math.floor}
_ROUNDED_BELOW = 64  # pixels of the shorter side; see inception_box
Box = tuple[int, int, int, int]  # top, left, height, width


def inception_box(
    size: Size,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rounded: bool = True,
) -> Box:
    """Draws (top, left, height, width) like TensorFlow.

    Follows sample_distorted_bounding_box without objects: the aspect (width over
    height) is uniform; then the height is uniform among those for which the area, as a
    fraction of the image's, is within bounds and the box inside the image. A box that
    does not fit is drawn again, at most 100 times; after that the box is the whole
    image. The box may touch the lower and the right border, which TensorFlow's misses
    by one pixel.

    Without `rounded`, the boxes of images below 64 pixels are those of version 0.2,
    which did not round the bounds of the height.
    """
    height, width = size
    least, most = (fraction * height * width for fraction in area)
    # The roundings change the mean area by less than a hundredth from 64 pixels on,
    # where boxes stay those that earlier versions drew.
    rounded = rounded and min(size) < _ROUNDED_BELOW
    draw = _rounded_box if rounded else _inner_box
    for _ in range(100):
        ratio = aspect[0] + (aspect[1] - aspect[0]) * rng.random()
        box_height = draw(size, rng, ratio, least, most)
        box_width = round(box_height * ratio)
        fits = 1 <= box_height <= height and 1 <= box_width <= width
        if not fits or not least <= box_height * box_width <= most:
            continue
        return (*_corner(size, (box_height, box_width), rng), box_height, box_width)
    return 0, 0, height, width


def _inner_box(
    size: Size, rng: np.random.Generator, ratio: float, least: float, most: float
) -> int:
    """Draws the height of a box whose area is within bounds before rounding; or 0."""
    height, width = size
    shortest = max(1, math.ceil(math.sqrt(least / ratio)))
    tallest = int(min(math.sqrt(most / ratio), (width + 0.5) / ratio, height))
    return _draw(rng, shortest, tallest) if shortest <= tallest else 0


def _rounded_box(
    size: Size, rng: np.random.Generator, ratio: float, least: float, most: float
) -> int:
    """Draws the height of a box with TensorFlow's roundings.

    The least and the largest height are rounded to the nearest, and a box whose area is
    then out of bounds gets one row more or less.
    """
    height, width = size
    shortest, tallest = (round(math.sqrt(bound / ratio)) for bound in (least, most))
    if round(tallest * ratio) > width:
        tallest = int((width + 0.5 - 1e-7) / ratio)
        tallest -= round(tallest * ratio) > width
    tallest = min(tallest, height)
    drawn = _draw(rng, min(shortest, tallest), tallest)
    drawn += drawn * round(drawn * ratio) < least
    drawn -= drawn * round(drawn * ratio) > most
    return drawn


def resized_crop_box(
    size: Size,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
    retry: bool = True,
) -> Box:
    """Draws (top, left, height, width) like torchvision's RandomResizedCrop.

    The area, as a fraction of the image's, is uniform, and so is the logarithm of the
    aspect (width over height). A box that does not fit is drawn again, at most 10
    times; after that the box is the largest at the centre whose aspect is within
    bounds. Without `retry`, a side that does not fit becomes that of the image, as in
    MAE's linear probe (arXiv:2111.06377).
    """
    height, width = size
    for _ in range(10 if retry else 1):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width = round(math.sqrt(pixels * ratio))
        box_height = round(math.sqrt(pixels / ratio))
        if not retry:
            box_width = max(1, min(box_width, width))
            box_height = max(1, min(box_height, height))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (*_corner(size, (box_height, box_width), rng), box_height, box_width)
    box_height = max(1, min(height, round(width / aspect[0])))
    box_width = max(1, min(width, round(height * aspect[1])))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


def inception_crop(
    size,
    area_min=0.05,
    area_max=1.0,
    aspect_min=0.75,
    aspect_max=1.33,
    interpolation="bilinear",
    rounded=True,
) -> Operation:
    """Cuts out a random box as big_vision and vision_transformer do, and resizes it."""
    area, aspect = (area_min, area_max), (aspect_min, aspect_max)
    check_flag("rounded", rounded)
    draw = functools.partial(inception_box, rounded=rounded)
    return _cut_and_resize(draw, size, area, aspect, interpolation)


def random_resized_crop(
    size,
    area_min=0.08,
    area_max=1.0,
    aspect_min=3 / 4,
    aspect_max=4 / 3,
    interpolation="bicubic_antialias",
    retry=True,
) -> Operation:
    """Cuts out and resizes a random box (torchvision's RandomResizedCrop).

    The default interpolation is that of DeiT and its successors. See `resized_crop_box`
    for `retry`.
    """
    area, aspect = (area_min, area_max), (aspect_min, aspect_max)
    check_flag("retry", retry)
    draw = functools.partial(resized_crop_box, retry=retry)
    return _cut_and_resize(draw, size, area, aspect, interpolation)


def random_crop(size, padding=0) -> Operation:
    """Cuts out a box at a random place (big_vision's random_crop).

    With padding it is torchvision's RandomCrop with padding_mode="reflect": `padding`
    pixels are first added on each side, mirrored at the outermost pixels.
    """
    size = read_size(size)
    check_number("padding", padding, 0, math.inf, whole=True)

    def output_size(have: Size | None) -> Size:
        if have is None:
            return size
        if padding >= min(have):
            raise ValueError(
                f"padding={padding} mirrors more pixels than {times(have)} has; use "
                "less padding, or resize first"
            )
        return _cropped(size, (have[0] + 2 * padding, have[1] + 2 * padding))

    def apply(image, rng):
        height, width = image.shape[:2]
        padded = height + 2 * padding, width + 2 * padding
        top, left = (start - padding for start in _corner(padded, size, rng))
        if min(top, left) >= 0 and top + size[0] <= height and left + size[1] <= width:
            return image[top : top + size[0], left : left + size[1]]
        rows, columns = _mirrored(top, size[0], height), _mirrored(left, size[1], width)
        # The part of the image that is seen, directly or mirrored.
        first, start = rows.min(), columns.min()
        seen = image[first : rows.max() + 1, start : columns.max() + 1]
        return seen[rows - first][:, columns - start]

    return Operation(apply, output_size, random=True, cuts=True)


def central_crop(size, rounding="down") -> Operation:
    """Cuts out a box at the centre; `rounding` applies to its offset."""
    size = read_size(size)
    check_choice("rounding", rounding, ROUNDINGS)

    def apply(image, _):
        top, left = (
            ROUNDINGS[rounding]((have - want) / 2)
            for have, want in zip(image.shape[:2], size, strict=True)
        )
        return image[top : top + size[0], left : left + size[1]]

    return Operation(apply, functools.partial(_cropped, size), cuts=True)


def resize(size, interpolation="bilinear") -> Operation:
    """Resizes to `size`; the aspect is not kept."""
    size = read_size(size)
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    return Operation(
        lambda image, _: resize_or_defer(image, size, interpolation), lambda _: size
    )


def resize_small(size, interpolation="area", rounding="nearest") -> Operation:
    """Resizes to the smallest image of the same aspect that covers `size`.

    If `size` is a single number, the shorter side gets that length. `rounding` applies
    to the longer side.
    """
    size = read_size(size)
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_choice("rounding", rounding, ROUNDINGS)

    def covering(have: Size) -> Size:
        # Multiplying before dividing keeps whole results exact.
        whole = ROUNDINGS[rounding]
        height = max(size[0], whole(size[1] * have[0] / have[1]))
        width = max(size[1], whole(size[0] * have[1] / have[0]))
        return height, width

    return Operation(
        lambda image, _: resize_or_defer(
            image, covering(image.shape[:2]), interpolation
        ),
        lambda have: have and covering(have),
    )


def flip_lr() -> Operation:
    """Mirrors half of the images, drawn at random, from left to right."""

    def apply(image, rng):
        if rng.random() >= 0.5:
            return image
        # A view, image[:, ::-1], would take longer when it is copied into the batch.
        return cv2.flip(image, 1).reshape(image.shape)

    return Operation(apply, keep_size, random=True)


def _cut_and_resize(draw_box, size, area, aspect, interpolation) -> Operation:
    size = read_size(size)
    area, aspect = check_bounds("area", *area), check_bounds("aspect", *aspect)
    if area[1] > 1:
        raise ValueError(
            f"area_max={area[1]} must be a fraction of the image, at most 1"
        )
    check_choice("interpolation", interpolation, INTERPOLATIONS)

    def apply(image, rng):
        top, left, height, width = draw_box(image.shape[:2], rng, area, aspect)
        box = image[top : top + height, left : left + width]
        return resize_image(box, size, interpolation)

    return Operation(apply, lambda _: size, random=True, cuts=True)


def _corner(have: Size, want: Size, rng: np.random.Generator) -> tuple[int, int]:
    """Draws (top, left) of a box of size `want`, uniformly among those inside."""
    return _draw(rng, 0, have[0] - want[0]), _draw(rng, 0, have[1] - want[1])


def _mirrored(start: int, length: int, whole: int) -> np.ndarray:
    """Returns the indices of pixels from `start`, mirrored at the outermost ones."""
    index = np.abs(np.arange(start, start + length))
    return np.where(index < whole, index, 2 * (whole - 1) - index)


def _draw(rng: np.random.Generator, least: int, most: int) -> int:
    """Draws a uniform integer in least … most, in a quarter of rng.integers' time."""
    return least + int(rng.random() * (most - least + 1))


def _cropped(size: Size, have: Size | None) -> Size:
    if have is not None and (have[0] < size[0] or have[1] < size[1]):
        raise ValueError(
            f"cannot cut {times(size)} out of {times(have)}; resize first, for "
            "example with 'resize_small'"
        )
    return size
