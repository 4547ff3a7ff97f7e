"""Tests of the pixels of resized images."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.transforms.chains import parse_chain
from vit_jax.data.transforms.resizing import INTERPOLATIONS, resize_image

SIZES = [((8, 8), (32, 32)), ((7, 13), (20, 9)), ((50, 30), (12, 17)), ((9, 9), (6, 4))]
PILLOW = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic_antialias": Image.Resampling.BICUBIC,
}


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def half_pixel_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolates each output centre between at most four input centres."""
    result = image.astype(np.float64)
    for axis, new in enumerate(size):
        old = result.shape[axis]
        centre = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(centre).astype(int)
        weight = (centre - low).reshape([-1 if d == axis else 1 for d in range(3)])
        first = np.take(result, np.clip(low, 0, old - 1), axis)
        second = np.take(result, np.clip(low + 1, 0, old - 1), axis)
        result = first * (1 - weight) + second * weight
    return result


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bilinear_has_half_pixel_centres_and_no_antialias(old, new, channels):
    image = noise(*old, channels)
    resized = resize_image(image, new)
    assert resized.shape == (*new, channels)
    assert resized.dtype == np.uint8
    difference = resized - half_pixel_bilinear(image, new)
    assert abs(difference).max() <= 1  # rounding to whole numbers
    # OpenCV's fixed-point arithmetic is 1/8 too low on average; truncation is 1/2.
    assert -0.2 < difference.mean() < 0.1


def test_a_row_by_hand():
    # Centres of the 4 outputs in input pixels: −0.25, 0.25, 0.75, 1.25.
    row = np.array([[[0], [100]]], np.uint8)
    np.testing.assert_array_equal(resize_image(row, (1, 4))[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("layout", ["contiguous", "view"])
def test_antialias_matches_pillow_pixel_by_pixel(interpolation, old, new, layout):
    size, resample = new[::-1], PILLOW[interpolation]
    for channels in (1, 2, 3, 4, 5):
        image = noise(*old, channels)
        image = image if layout == "contiguous" else image[:, ::-1]
        resized = resize_image(image, new, interpolation)
        assert resized.dtype == np.uint8
        planes = [
            np.asarray(Image.fromarray(plane).resize(size, resample))
            for plane in np.moveaxis(image, 2, 0)
        ]
        np.testing.assert_array_equal(resized, np.stack(planes, 2))
        if channels == 3:
            whole = Image.fromarray(image).resize(size, resample)
            np.testing.assert_array_equal(resized, np.asarray(whole))


@pytest.mark.parametrize("interpolation", PILLOW)
def test_antialias_averages_all_pixels_between(interpolation):
    # Without antialiasing, stripes one pixel wide would leave traces.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[:, :, None]
    smooth = resize_image(stripes, (9, 9), interpolation)[1:-1, 1:-1]
    assert abs(smooth - 127.5).max() < 12
    plain = resize_image(stripes, (9, 9), interpolation.removesuffix("_antialias"))
    assert np.ptp(plain) > 100


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_in_a_chain(interpolation):
    image = noise(20, 14, 4)
    chain = parse_chain(f"resize(interpolation={interpolation!r})", (9, 16))
    resized = chain(image)
    assert (resized.shape, resized.dtype) == ((9, 16, 4), np.uint8)
    np.testing.assert_array_equal(resized, resize_image(image, (9, 16), interpolation))
    for channels in (5, 9):
        image = noise(20, 14, channels)
        planes = [chain(image[:, :, k : k + 1]) for k in range(channels)]
        np.testing.assert_array_equal(chain(image), np.dstack(planes))
    even = np.full((20, 14, 1), 200, np.uint8)
    np.testing.assert_array_equal(chain(even), np.full((9, 16, 1), 200))
