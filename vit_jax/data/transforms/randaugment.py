"""RandAugment (arXiv:1909.13719) in TensorFlow's form, which AugReg was trained with.

The definitions are those of big_vision (pp/archive/autoaugment.py, from TensorFlow's
TPU models) at the time of its published models. Their quirks are kept, because those
models were trained with them: see `posterize`, `solarize` and `contrast`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from vit_jax.data.transforms import tones
from vit_jax.data.transforms.operations import (
    COLOURED,
    Operation,
    check_number,
    keep_size,
)
from vit_jax.data.transforms.resizing import Size

FILL = 128  # grey level of pixels from outside the image


class Operator(NamedTuple):
    """One of the operations to choose from.

    Attributes:
      apply: (image, argument) → image.
      argument: (a tenth of the magnitude, (height, width), random generator) → the
        argument of `apply`; None if `apply` takes no argument.
    """

    apply: Callable[..., np.ndarray]
    argument: Callable[[float, Size, np.random.Generator], Any] | None = None


def randaugment(layers, magnitude) -> Operation:
    """Applies `layers` randomly chosen operations (RandAugment in TensorFlow's form).

    Every layer applies one of 16 operations, all equally likely, at the same magnitude
    from 0 to 30. Magnitude 0 is not the weakest: see `OPERATORS`.
    """
    check_number("layers", layers, 1, math.inf, whole=True)
    check_number("magnitude", magnitude, 0, 30)
    operators = tuple(OPERATORS.values())

    def apply(image, rng):
        for chosen in rng.integers(len(operators), size=layers):
            image = apply_operator(operators[chosen], image, magnitude / 10, rng)
        return image

    return Operation(apply, keep_size, random=True, channels=COLOURED)


def apply_operator(
    operator: Operator,
    image: np.ndarray,
    level: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the random argument of an operation, if it has one, and applies it."""
    if operator.argument is None:
        return operator.apply(image)
    return operator.apply(image, operator.argument(level, image.shape[:2], rng))


def signed(value: float, rng: np.random.Generator) -> float:
    """Returns the value, negated with probability one half."""
    return -value if rng.random() < 0.5 else value


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest bits.

    The shift that clears the others is an 8-bit number and at most 7: one bit is kept
    where none should be, and where more than eight should be.
    """
    return tones.keep_bits(image, 8 - min((8 - bits) % 256, 7))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values of at least the threshold.

    The threshold is an 8-bit number: 256 wraps to 0, so magnitude 10 inverts everything
    instead of nothing.
    """
    return tones.solarize(image, threshold % 256)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the grey image (factor 0), or away from it."""
    return tones.blend(luminance(image), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a uniform grey (factor 0), or away from it.

    That grey is not the image's mean, but its number of pixels divided by 256: 196 at
    224 × 224 pixels, white from 256 × 256 on.
    """
    level = min(image.shape[0] * image.shape[1] // 256, 255)
    return tones.blend_level(level, image, factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black (factor 0), or away from it."""
    return tones.blend_level(0, image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the smoothed image (factor 0), or away from it."""
    return tones.blend(tones.smooth(image, rounded=False), image, factor)


def luminance(image: np.ndarray) -> np.ndarray:
    """Computes grey like tf.image.rgb_to_grayscale, in three equal channels."""
    if image.shape[2] == 1:
        return image
    # TensorFlow goes from [0, 1] to integers by multiplying with 255.5 and truncating.
    weights = np.array([[0.2989, 0.587, 0.114]]) * (255.5 / 255)
    grey = cv2.transform(image.astype(np.float32), weights.astype(np.float32))
    return tones.in_channels(grey.astype(np.uint8), 3)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates the image around its centre, counterclockwise for positive degrees."""
    radians = np.float32(degrees) * np.float32(math.pi / 180)
    cos, sin = np.cos(radians), np.sin(radians)
    bottom, right = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    across = (right - (cos * right - sin * bottom)) / 2
    down = (bottom - (sin * right + cos * bottom)) / 2
    return _transform(image, (cos, -sin, across), (sin, cos, down))


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """Shifts every row to the left by `level` times its index."""
    return _transform(image, (1, level, 0), (0, 1, 0))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """Shifts every column upwards by `level` times its index."""
    return _transform(image, (1, 0, 0), (level, 1, 0))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts the image to the left."""
    return _transform(image, (1, 0, pixels), (0, 1, 0))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts the image upwards."""
    return _transform(image, (1, 0, 0), (0, 1, pixels))


def cutout(image: np.ndarray, argument: tuple[int, int, int]) -> np.ndarray:
    """Fills a square, which is cut off at the image's borders.

    Args:
      image: the pixels.
      argument: half of the square's side, row and column of its centre.
    """
    pad, row, column = argument
    image = image.copy()
    image[max(0, row - pad) : row + pad, max(0, column - pad) : column + pad] = FILL
    return image


def _transform(image: np.ndarray, x_row, y_row) -> np.ndarray:
    """Transforms like tensorflow_addons.image.transform, with the nearest pixel.

    Pixel (x, y) comes from (x_row · (x, y, 1), y_row · (x, y, 1)), rounded.
    """
    places = []
    for to_x, to_y, offset in (x_row, y_row):
        from_x = np.float32(to_x) * np.arange(image.shape[1], dtype=np.float32)
        from_y = np.float32(to_y) * np.arange(image.shape[0], dtype=np.float32)
        place = from_x[None] + from_y[:, None] + np.float32(offset)
        # Halves are rounded away from zero, as in C.
        places.append(np.trunc(place + np.copysign(np.float32(0.5), place)))
    moved = cv2.remap(
        image,
        *places,
        interpolation=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL,) * 4,
    )
    return moved.reshape(image.shape)


def _enhancement(level: float, *_) -> float:
    return 1.8 * level + 0.1


# Name → operator; `level` is a tenth of the magnitude.
OPERATORS: dict[str, Operator] = {
    "AutoContrast": Operator(lambda image: tones.auto_contrast(image, np.float32)),
    "Equalize": Operator(tones.equalize),
    "Invert": Operator(tones.invert),
    "Rotate": Operator(rotate, lambda level, _, rng: signed(30 * level, rng)),
    "Posterize": Operator(posterize, lambda level, *_: int(4 * level)),
    "Solarize": Operator(solarize, lambda level, *_: int(256 * level)),
    "Color": Operator(color, _enhancement),
    "Contrast": Operator(contrast, _enhancement),
    "Brightness": Operator(brightness, _enhancement),
    "Sharpness": Operator(sharpness, _enhancement),
    "ShearX": Operator(shear_x, lambda level, _, rng: signed(0.3 * level, rng)),
    "ShearY": Operator(shear_y, lambda level, _, rng: signed(0.3 * level, rng)),
    "TranslateX": Operator(translate_x, lambda level, _, rng: signed(100 * level, rng)),
    "TranslateY": Operator(translate_y, lambda level, _, rng: signed(100 * level, rng)),
    "Cutout": Operator(
        cutout,
        lambda level, size, rng: (int(40 * level), *map(int, rng.integers(size))),
    ),
    "SolarizeAdd": Operator(tones.solarize_add, lambda level, *_: int(110 * level)),
}
