"""RandAugment (arXiv:1909.13719) in timm's form, which DeiT was trained with.

The definitions are those of timm (data/auto_augment.py), which uses Pillow's.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vit_jax.data.transforms import tones
from vit_jax.data.transforms.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)
from vit_jax.data.transforms.operations import (
    COLOURED,
    Operation,
    check_choice,
    check_number,
    keep_size,
    unknown,
)
from vit_jax.data.transforms.randaugment import signed

PROBABILITY = 0.5  # of applying an operation that was chosen
# Filters to draw from. "random" is timm's default; DeiT uses "bicubic".
RESAMPLING = {
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class Policy(NamedTuple):
    """The parameters in a text such as "rand-m9-mstd0.5-inc1".

    Attributes:
      magnitude: mean magnitude, 0 to 10.
      deviation: standard deviation of the magnitude, which is drawn from a normal
        distribution and clipped to 0…10.
      increasing: whether every operation gets stronger as the magnitude increases.
      layers: how many operations are chosen.
    """

    magnitude: int = 10
    deviation: float = 0.0
    increasing: bool = False
    layers: int = 2


class Operator(NamedTuple):
    """One of the operations to choose from.

    Attributes:
      apply: (image, argument) → image. If pixels move, the images are Pillow's, and
        `resample` and `fillcolor` are keyword arguments.
      argument: (a tenth of the magnitude, random generator) → the argument of `apply`;
        None if `apply` takes no argument.
      moves: whether pixels move.
    """

    apply: Callable[..., Any]
    argument: Callable[[float, np.random.Generator], float] | None = None
    moves: bool = False


def timm_randaugment(
    policy="rand-m9-mstd0.5-inc1",
    interpolation="bicubic",
    fill=(124, 116, 104),
) -> Operation:
    """Applies up to n randomly chosen operations (RandAugment in timm's form).

    Each of n layers chooses one of 15 operations, all equally likely, and applies it
    with probability one half, at a magnitude drawn anew.

    Args:
      policy: timm's notation, see `parse_policy`.
      interpolation: a key of RESAMPLING.
      fill: one value, or three, for pixels from outside the image. The default is the
        mean of ImageNet, which DeiT normalises with.
    """
    magnitude, deviation, increasing, layers = parse_policy(policy)
    check_choice("interpolation", interpolation, RESAMPLING)
    colours = _read_fill(fill)
    operators = tuple(OPERATORS[increasing].values())

    def apply(image, rng):
        for chosen in rng.integers(len(operators), size=layers):
            if rng.random() < PROBABILITY:
                level = min(max(rng.normal(magnitude, deviation), 0), 10) / 10
                kinds = RESAMPLING[interpolation]
                resample = kinds[rng.integers(len(kinds))]
                operator = operators[chosen]
                image = apply_operator(operator, image, level, rng, resample, colours)
        return image

    return Operation(apply, keep_size, random=True, channels=COLOURED)


def parse_policy(text: str) -> Policy:
    """Reads a policy in timm's notation.

    Args:
      text: "rand", then in any order, joined by "-": the magnitude m, a whole number;
        its standard deviation mstd; inc1 if all operations get stronger as it
        increases; the number of layers n. Defaults are those of `Policy`.

    Raises:
      ValueError: the text is not such a policy; lists all problems at once.
    """
    kind, *sections = str(text).split("-")
    problems = [] if kind == "rand" else [f"it begins with {kind!r}, not 'rand'"]
    values = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+|\d*\.\d+)", section)
        if match is None or match[1] not in _SECTIONS:
            problems.append(unknown("section", section, _EXAMPLES))
            continue
        field, least, most, whole = _SECTIONS[match[1]]
        number = float(match[2]) if "." in match[2] else int(match[2])
        if field in values:
            problems.append(f"{match[1]} occurs twice")
        try:
            check_number(match[1], number, least, most, whole)
        except ValueError as error:
            problems.append(str(error))
        values[field] = bool(number) if field == "increasing" else number
    if problems:
        raise ValueError(
            f"the policy {text!r} cannot be used, expected one such as "
            f"'rand-m9-mstd0.5-inc1': {'; '.join(problems)}"
        )
    return Policy(**values)


def apply_operator(
    operator: Operator,
    image: np.ndarray,
    level: float,
    rng: np.random.Generator,
    resample: Image.Resampling,
    fill: tuple[int, ...],
) -> np.ndarray:
    """Draws the random argument of an operation, if it has one, and applies it."""
    if operator.argument is None:
        return operator.apply(image)
    argument = operator.argument(level, rng)
    if operator.moves:
        return move(operator.apply, image, argument, resample, fill)
    return operator.apply(image, argument)


def move(
    transform: Callable[..., Image.Image],
    image: np.ndarray,
    argument: float,
    resample: Image.Resampling,
    fill: tuple[int, ...],
) -> np.ndarray:
    """Applies a transform of Pillow images that moves pixels to an array."""
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[:, :, 0] if grey else image)
    moved = transform(
        picture,
        argument,
        resample=resample,
        fillcolor=_luminance(fill) if grey else fill,
    )
    return np.asarray(moved).reshape(image.shape)


def rotate(picture: Image.Image, degrees: float, **how) -> Image.Image:
    """Rotates the image around its centre, counterclockwise for positive degrees."""
    return picture.rotate(degrees, **how)


def shear_x(picture: Image.Image, level: float, **how) -> Image.Image:
    """Shifts every row to the left by `level` times its index."""
    return _affine(picture, (1, level, 0, 0, 1, 0), how)


def shear_y(picture: Image.Image, level: float, **how) -> Image.Image:
    """Shifts every column upwards by `level` times its index."""
    return _affine(picture, (1, 0, 0, level, 1, 0), how)


def translate_x(picture: Image.Image, fraction: float, **how) -> Image.Image:
    """Shifts the image to the left by a fraction of its width."""
    return _affine(picture, (1, 0, fraction * picture.width, 0, 1, 0), how)


def translate_y(picture: Image.Image, fraction: float, **how) -> Image.Image:
    """Shifts the image upwards by a fraction of its height."""
    return _affine(picture, (1, 0, 0, 0, 1, fraction * picture.height), how)


def adjust_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the smoothed image, or away from it (PIL.ImageEnhance.Sharpness)."""
    return tones.blend(tones.smooth(image), image, factor)


def _affine(picture: Image.Image, matrix, how) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **how)


def _read_fill(fill) -> tuple[int, ...]:
    values = tuple(fill) if isinstance(fill, (tuple, list)) else (fill,) * 3
    if len(values) != 3:
        raise ValueError(f"fill={fill!r} must be one number or three")
    for value in values:
        check_number("fill", value, 0, 255, whole=True)
    return values


def _luminance(fill: tuple[int, ...]) -> int:
    return int(tones.luminance(np.array([[fill]], np.uint8))[0, 0])


def _enhancement(level: float, _) -> float:
    return 1.8 * level + 0.1


def _increasing_enhancement(level: float, rng: np.random.Generator) -> float:
    return 1 + signed(0.9 * level, rng)


def _operators(posterize, solarize, enhancement) -> dict[str, Operator]:
    """Makes a table of the operations; the two tables differ in these arguments."""
    return {
        "AutoContrast": Operator(tones.auto_contrast),
        "Equalize": Operator(tones.equalize),
        "Invert": Operator(tones.invert),
        "Rotate": Operator(rotate, lambda level, rng: signed(30 * level, rng), True),
        "Posterize": Operator(tones.keep_bits, posterize),
        "Solarize": Operator(tones.solarize, solarize),
        "SolarizeAdd": Operator(tones.solarize_add, lambda level, _: int(110 * level)),
        "Color": Operator(adjust_saturation, enhancement),
        "Contrast": Operator(adjust_contrast, enhancement),
        "Brightness": Operator(adjust_brightness, enhancement),
        "Sharpness": Operator(adjust_sharpness, enhancement),
        "ShearX": Operator(shear_x, lambda level, rng: signed(0.3 * level, rng), True),
        "ShearY": Operator(shear_y, lambda level, rng: signed(0.3 * level, rng), True),
        "TranslateX": Operator(
            translate_x, lambda level, rng: signed(0.45 * level, rng), True
        ),
        "TranslateY": Operator(
            translate_y, lambda level, rng: signed(0.45 * level, rng), True
        ),
    }


# `Policy.increasing` → name → operator; `level` is a tenth of the magnitude.
OPERATORS: dict[bool, dict[str, Operator]] = {
    False: _operators(
        posterize=lambda level, _: int(4 * level),
        solarize=lambda level, _: int(256 * level),
        enhancement=_enhancement,
    ),
    True: _operators(
        posterize=lambda level, _: 4 - int(4 * level),
        solarize=lambda level, _: 256 - int(256 * level),
        enhancement=_increasing_enhancement,
    ),
}
# Section of a policy → field of Policy, minimum, maximum, whether it is an integer.
_SECTIONS = {
    "m": ("magnitude", 0, 10, True),
    "mstd": ("deviation", 0, 100, False),
    "inc": ("increasing", 0, 1, True),
    "n": ("layers", 1, math.inf, True),
}
_EXAMPLES = ("m9", "mstd0.5", "inc1", "n2")
