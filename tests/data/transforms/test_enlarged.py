"""Tests of pictures of extreme shape: only what the crop keeps is made."""

import tracemalloc

import numpy as np
import pytest

from vit_jax.data.decode import UnsuitableImage
from vit_jax.data.transforms import enlarged
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.data.transforms.enlarged import Enlarged, resize_or_defer
from vit_jax.data.transforms.resizing import INTERPOLATIONS, resize_image

CROPPED = [
    "resize_small(256)|central_crop",
    "resize_small(256, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')",
    "resize_small(256, 'bilinear')|random_crop",
    "resize_small(interpolation='bicubic_antialias')|random_crop(padding=4)|flip_lr",
    "resize_small(256, 'nearest')|random_crop",
    "resize_small(256, 'bicubic')|random_crop",
    "resize((300, 100000))|central_crop",
    "inception_crop",
    "resize",
]


ENLARGED = [((3, 70), (100, 2333)), ((50, 7), (700, 101)), ((8, 9), (64, 81))]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (1, 1), (2, 20_000)])
@pytest.mark.parametrize("chain", CROPPED)
def test_memory_is_bounded_by_what_is_kept(shape, chain, monkeypatch):
    made = []

    def resize(image, size, interpolation):
        made.append(size[0] * size[1])
        return resize_image(image, size, interpolation)

    monkeypatch.setattr(enlarged, "resize_image", resize)
    result = parse_chain(chain, (224, 224))(noise(*shape), np.random.default_rng(0))
    assert result.shape == (224, 224, 3)
    assert max(made, default=0) <= 2**22


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_the_unseen_part_of_a_long_picture_takes_no_memory(interpolation):
    image = noise(1, 400_000)
    chain = parse_chain(f"resize_small(256, '{interpolation}')|central_crop", (64, 64))
    expected = chain(image[:, 199_900:200_100])
    tracemalloc.start()
    try:
        kept = chain(image)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(kept, expected)
    assert most < 2**20


def test_pixels_by_hand():
    # 256 columns per source pixel, of which the 224 at the centre are kept: the last
    # 112 of the 2,000th pixel and the first of the next.
    image = noise(1, 4000)
    kept = parse_chain("resize_small(256)|central_crop", (224, 224))(image)
    np.testing.assert_array_equal(kept[:, :112], np.tile(image[:, 1999], (224, 112, 1)))
    np.testing.assert_array_equal(kept[:, 112:], np.tile(image[:, 2000], (224, 112, 1)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("shape", "size"), ENLARGED)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_boxes_have_the_pixels_of_the_whole(interpolation, shape, size, channels):
    image = noise(*shape, channels)
    whole = resize_image(image, size, interpolation)
    deferred = Enlarged(image, size, interpolation)
    assert deferred.shape == whole.shape
    height, width = size
    for top, left in ((0, 0), (height // 3, width // 2), (height - 9, width - 11)):
        box = slice(top, top + 9), slice(left, left + 11)
        made = deferred[box]
        assert made.dtype == np.uint8
        # OpenCV and Pillow calculate with whole numbers.
        assert abs(made.astype(int) - whole[box]).max() <= 1
        if interpolation == "nearest":
            np.testing.assert_array_equal(made, whole[box])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_ordinary_pictures_are_resized_as_a_whole(interpolation):
    sizes = [((375, 500), (256, 341)), ((60, 8), (1900, 256)), ((4, 4), (9, 2))]
    for shape, size in sizes:
        image = noise(*shape)
        resized = resize_or_defer(image, size, interpolation)
        assert isinstance(resized, np.ndarray)
        np.testing.assert_array_equal(resized, resize_image(image, size, interpolation))


def test_large_boxes_are_cut_from_the_whole(monkeypatch):
    monkeypatch.setattr(enlarged, "_ORDINARY_PIXELS", 100)
    image = noise(3, 5)
    deferred = resize_or_defer(image, (30, 50), "bilinear")
    assert isinstance(deferred, Enlarged)
    whole = resize_image(image, (30, 50), "bilinear")
    box = slice(2, 12), slice(3, 13)
    np.testing.assert_array_equal(deferred[box], whole[box])
    np.testing.assert_array_equal(deferred.decode(), whole)


def test_enlargements_that_would_be_needed_whole_are_refused():
    chain = parse_chain("resize_small(256)|flip_lr|central_crop", (224, 224))
    assert chain(noise(40, 50), np.random.default_rng(0)).shape == (224, 224, 3)
    with pytest.raises(UnsuitableImage) as error:
        chain(noise(1, 4000), np.random.default_rng(0), "strip.png")
    assert str(error.value) == (
        "strip.png: resizing 1×4000 to 256×1024000 pixels needs more than the "
        "89,478,485 allowed. Let a crop to a fixed size follow directly, or remove the "
        "image (in the chain 'resize_small(256)|flip_lr|central_crop')"
    )
    chain = parse_chain("resize_small(256)|inception_crop", (224, 224))
    with pytest.raises(UnsuitableImage, match=r"^strip\.png: resizing 1×4000 to 256×"):
        chain(noise(1, 4000), np.random.default_rng(0), "strip.png")
