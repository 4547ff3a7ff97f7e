"""Operations on the colours of an image, and 3-Augment, which chooses one of them."""

import math

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.transforms import tones
from vit_jax.data.transforms.operations import (
    COLOURED,
    Operation,
    check_bounds,
    check_number,
    keep_size,
)


def grey(prob=1.0) -> Operation:
    """Sets every channel to the luminance (torchvision's Grayscale, by Pillow).

    A share `prob` of the images, drawn at random, is changed.
    """
    return _operation(lambda image, _: _desaturated(image), prob=prob)


def solarize(threshold=128, prob=1.0) -> Operation:
    """Inverts values of at least the threshold (PIL.ImageOps.solarize).

    A share `prob` of the images, drawn at random, is changed.
    """
    check_number("threshold", threshold, 0, 256, whole=True)
    return _operation(lambda image, _: tones.solarize(image, threshold), prob=prob)


def blur(radius_min=0.1, radius_max=2.0, prob=1.0) -> Operation:
    """Blurs with a Gaussian of uniformly drawn radius (DeiT-III, arXiv:2204.07118).

    The blur is Pillow's. A share `prob` of the images, drawn at random, is blurred.
    """
    radius = check_bounds("radius", radius_min, radius_max)
    return _operation(
        lambda image, rng: tones.blur(image, rng.uniform(*radius)),
        random=True,
        prob=prob,
    )


def three_augment() -> Operation:
    """Applies exactly one of grey, solarize and blur (DeiT-III, arXiv:2204.07118)."""
    choices = (grey(), solarize(), blur())

    def apply(image, rng):
        return choices[rng.integers(len(choices))].apply(image, rng)

    return _operation(apply, random=True)


def color_jitter(
    brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, prob=1.0
) -> Operation:
    """Changes brightness, contrast, saturation and hue (torchvision's ColorJitter).

    For an amount x each factor is uniform between 1 − x (at least 0) and 1 + x; the
    hue's is uniform between −x and x, in turns around the colour circle. The order is
    random. A share `prob` of the images, drawn at random, is changed.
    """
    amounts = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
    }
    for name, amount in amounts.items():
        check_number(name, amount, 0, 0.5 if name == "hue" else math.inf)
    if not any(amounts.values()):
        raise ValueError("all amounts are 0; expected at least one above 0")

    def apply(image, rng):
        for chosen in rng.permutation(len(ADJUSTMENTS)):
            name, adjust = ADJUSTMENTS[chosen]
            if amount := amounts[name]:
                centre = 0 if name == "hue" else 1
                low = centre - amount if name == "hue" else max(0, centre - amount)
                image = adjust(image, rng.uniform(low, centre + amount))
        return image

    return _operation(apply, random=True, prob=prob)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black (factor 0), or away from it (PIL.ImageEnhance.Brightness)."""
    return tones.blend_level(0, image, factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean luminance, or away from it (PIL.ImageEnhance.Contrast)."""
    mean = cv2.mean(tones.luminance(image))[0]
    return tones.blend_level(math.floor(mean + 0.5), image, factor)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the luminance, or away from it (PIL.ImageEnhance.Color)."""
    return tones.blend(_desaturated(image), image, factor)


def adjust_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turns hues around the colour circle (torchvision's adjust_hue, by Pillow)."""
    if image.shape[2] == 1:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[:, :, 0] += np.uint8(int(turns * 255) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


ADJUSTMENTS = (
    ("brightness", adjust_brightness),
    ("contrast", adjust_contrast),
    ("saturation", adjust_saturation),
    ("hue", adjust_hue),
)


def _desaturated(image: np.ndarray) -> np.ndarray:
    return tones.in_channels(tones.luminance(image), image.shape[2])


def _operation(apply, random: bool = False, prob: float = 1.0) -> Operation:
    """Makes the operation, applied to a share `prob` of the images."""
    check_number("prob", prob, 0, 1)
    if prob == 1:  # draws nothing more, so the images of earlier versions stay
        return Operation(apply, keep_size, random, COLOURED)

    def sometimes(image, rng):
        return apply(image, rng) if rng.random() < prob else image

    return Operation(sometimes, keep_size, True, COLOURED)
