"""Lookup tables, blends and filters: changes of pixel values that move no pixel.

Images and results are uint8 [h, w, c] with one channel (grey) or three (RGB). Where
TensorFlow and Pillow agree to the bit, one function serves both.
"""

import math

import cv2
import numpy as np
from PIL import Image

_LEVELS = np.arange(256, dtype=np.uint8)
# Pillow's SMOOTH, which is also the kernel of the published sharpness operators.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces every value v by table[v].

    Args:
      image: the pixels.
      table: uint8 [256], or [256, c] with one table per channel.
    """
    if table.ndim == 2:
        table = table.reshape(1, 256, -1)
    return cv2.LUT(image, table).reshape(image.shape)  # OpenCV drops a single channel


def invert(image: np.ndarray) -> np.ndarray:
    """Replaces every value v by 255 − v."""
    return 255 - image


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values of at least the threshold (PIL.ImageOps.solarize)."""
    return look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Adds to values below 128; sums are clipped to 255."""
    added = np.minimum(np.arange(256) + addition, 255).astype(np.uint8)
    return look_up(image, np.where(_LEVELS < 128, added, _LEVELS))


def keep_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Sets all but the highest bits to zero; 0 bits give black."""
    return image & np.uint8(0xFF00 >> bits & 0xFF)


def auto_contrast(image: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Stretches every channel to 0…255 (PIL.ImageOps.autocontrast).

    Args:
      image: the pixels.
      dtype: of the arithmetic, which affects rounding: float64 gives Pillow's result,
        float32 TensorFlow's.
    """
    tables = []
    for counts in _histograms(image):
        (present,) = np.nonzero(counts)
        low, high = dtype(present[0]), dtype(present[-1])
        if low == high:
            tables.append(_LEVELS)
            continue
        scale = dtype(255) / (high - low)
        stretched = _LEVELS.astype(dtype) * scale + -low * scale
        tables.append(np.clip(stretched, 0, 255).astype(np.uint8))
    return look_up(image, np.stack(tables, 1))


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads every channel's values evenly (PIL.ImageOps.equalize)."""
    tables = []
    for counts in _histograms(image):
        step = (counts.sum() - counts[np.nonzero(counts)[0][-1]]) // 255
        if step == 0:
            tables.append(_LEVELS)
            continue
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        spread = (below + step // 2) // step
        tables.append(np.minimum(spread, 255).astype(np.uint8))
    return look_up(image, np.stack(tables, 1))


def luminance(image: np.ndarray) -> np.ndarray:
    """Computes grey like Pillow (ITU-R 601-2): uint8 [h, w]."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    return np.asarray(Image.fromarray(image).convert("L"))


def in_channels(grey: np.ndarray, channels: int) -> np.ndarray:
    """Converts grey [h, w] to [h, w, 1], or to three equal channels."""
    return grey[:, :, None] if channels == 1 else cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def blend(base: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolates from `base` (factor 0) to the image (factor 1), and extrapolates.

    Computes in float32, clips to 0…255 and truncates to integers, like PIL.Image.blend
    and the TensorFlow operators.
    """
    blended = image.astype(np.float32)
    below = base.astype(np.float32)
    blended -= below
    blended *= np.float32(factor)
    blended += below
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def blend_level(level: int, image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image with a uniform one of the given level; see `blend`."""
    return look_up(image, blend(np.array(level), _LEVELS, factor))


def smooth(image: np.ndarray, rounded: bool = True) -> np.ndarray:
    """Averages each pixel (weight 5) with its eight neighbours (weight 1 each).

    The outermost pixels do not change (PIL.ImageFilter.SMOOTH).

    Args:
      image: the pixels.
      rounded: rounds to the nearest integer, like Pillow; otherwise truncates, like
        TensorFlow.
    """
    depth = -1 if rounded else cv2.CV_32F
    smoothed = cv2.filter2D(image, depth, _SMOOTH).astype(np.uint8, copy=False)
    smoothed = smoothed.reshape(image.shape)
    for edge in (0, -1):
        smoothed[edge], smoothed[:, edge] = image[edge], image[:, edge]
    return smoothed


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Blurs by three box averages in each direction (PIL.ImageFilter.GaussianBlur).

    Args:
      image: the pixels.
      radius: standard deviation, in pixels.
    """
    # A box with a third of the variance, whose two end weights are fractions (Gwosdek
    # et al., Theoretical Foundations of Gaussian Convolution by Extended Box Filtering,
    # 2011).
    variance = radius**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    weights = np.ones(2 * whole + 3, np.float32)
    weights[[0, -1]] = part
    weights /= weights.sum()
    along, across = np.ones(1, np.float32), weights
    for kernels in [(across, along)] * 3 + [(along, across)] * 3:
        # Pillow truncates its weights, which has the effect of rounding halves down.
        image = cv2.sepFilter2D(
            image, -1, *kernels, delta=-1e-5, borderType=cv2.BORDER_REPLICATE
        ).reshape(image.shape)
    return image


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    """Counts the values of each channel: int64 [256] per channel."""
    return [
        cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        for channel in range(image.shape[2])
    ]
