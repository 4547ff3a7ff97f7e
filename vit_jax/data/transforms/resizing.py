"""Resizing of decoded images, by OpenCV or by Pillow."""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Size = tuple[int, int]


def resize_image(
    image: np.ndarray, size: Size, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes uint8 [h, w, c] to uint8 [*size, c]; the aspect is not kept.

    Args:
      image: the pixels.
      size: (height, width).
      interpolation: a key of INTERPOLATIONS.
    """
    if image.shape[:2] == tuple(size):
        return image
    return INTERPOLATIONS[interpolation](image, size)


def _by_opencv(flag: int, image: np.ndarray, size: Size) -> np.ndarray:
    if image.shape[2] > 4:  # OpenCV's limit
        parts = np.split(image, range(4, image.shape[2], 4), 2)
        return np.dstack([_by_opencv(flag, part, size) for part in parts])
    resized = cv2.resize(image, (size[1], size[0]), interpolation=flag)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops a single channel


def _by_pillow(resample: Image.Resampling, image: np.ndarray, size: Size) -> np.ndarray:
    def resized(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), resample))

    # Pillow would treat the fourth channel as alpha and multiply the colours by it.
    if image.shape[2] == 3:
        return resized(image)
    return np.dstack([resized(plane) for plane in np.moveaxis(image, 2, 0)])


PILLOWS = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic_antialias": Image.Resampling.BICUBIC,
}
INTERPOLATIONS: dict[str, Callable[[np.ndarray, Size], np.ndarray]] = {
    "nearest": functools.partial(_by_opencv, cv2.INTER_NEAREST_EXACT),
    "bilinear": functools.partial(_by_opencv, cv2.INTER_LINEAR),
    "bicubic": functools.partial(_by_opencv, cv2.INTER_CUBIC),
    "area": functools.partial(_by_opencv, cv2.INTER_AREA),
    **{name: functools.partial(_by_pillow, how) for name, how in PILLOWS.items()},
}
