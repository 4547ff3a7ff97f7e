"""Tests of TIFFs of many bands and of stacks: read as channels, or refused as such."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from vit_jax.data.decode import UnsuitableImage, decode

BANDS = np.random.default_rng(0).integers(0, 256, (8, 9, 13), dtype=np.uint8)


def tiff(pixels: np.ndarray, photometric: str = "minisblack", **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **options)
    return file.getvalue()


def banded(pixels: np.ndarray, **options) -> bytes:
    return tiff(pixels, planarconfig="contig", **options)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 13])
@pytest.mark.parametrize("how", ["contig", "separate", "zlib", "big"])
def test_bands_are_read_as_channels(number, how):
    pixels = BANDS[:, :, :number]
    if how == "separate":
        data = tiff(np.moveaxis(pixels, 2, 0), planarconfig="separate")
    elif how == "zlib":
        data = banded(pixels, compression="zlib", predictor=True)
    else:
        data = banded(pixels, bigtiff=how == "big")
    np.testing.assert_array_equal(decode(data, number), pixels)


def test_deep_bands():
    deep = BANDS.astype(np.uint16) * 16
    np.testing.assert_array_equal(decode(banded(deep), 13, "x", 4080), BANDS)
    np.testing.assert_array_equal(decode(banded(deep), 13), BANDS >> 4)
    part = (BANDS / 255).astype(np.float32)
    np.testing.assert_array_equal(decode(banded(part), 13, "x", 1.0), BANDS)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_many_bands_are_refused_by_what_they_are(channels):
    with pytest.raises(UnsuitableImage) as error:
        decode(banded(BANDS), channels, "field.tif")
    assert str(error.value) == (
        "field.tif cannot be used: it is a TIFF of 13 bands, and the model takes "
        f"{channels} channel(s). Set model.channels=13 to read all of them, or convert "
        "the images"
    )
    # Colour with more bands: Pillow would drop them without a word.
    more = tiff(BANDS[:, :, :6], "rgb", extrasamples=["unspecified"] * 3)
    with pytest.raises(UnsuitableImage, match="a TIFF of 6 bands"):
        decode(more, channels)
    np.testing.assert_array_equal(decode(more, 6), BANDS[:, :, :6])


def test_fourth_band_beside_colour():
    four = BANDS[:, :, :4]
    infrared = tiff(four, "rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(infrared, 4), four)
    np.testing.assert_array_equal(decode(infrared, 3), four[:, :, :3])
    alpha = tiff(four, "rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(alpha, 4), four)
    np.testing.assert_array_equal(decode(alpha, 3), four[:, :, :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stack_is_read_as_channels(dtype):
    pages = np.moveaxis(BANDS, 2, 0).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    np.testing.assert_array_equal(decode(tiff(pages), 13), BANDS)


def test_stacks_are_refused_by_what_they_are():
    pages = np.moveaxis(np.tile(BANDS, 4)[:, :, :40], 2, 0)
    with pytest.raises(
        UnsuitableImage, match="a stack of 40 pages, and the model take"
    ):
        decode(tiff(pages), 3)
    file = io.BytesIO()
    colours = [Image.new("RGB", (8, 8), name) for name in ("red", "green", "blue")]
    colours[0].save(file, "TIFF", save_all=True, append_images=colours[1:])
    with pytest.raises(UnsuitableImage, match="a stack of 3 pages of 3 bands each"):
        decode(file.getvalue(), 3)
    file = io.BytesIO()
    sizes = [Image.new("L", (side, 8)) for side in (8, 9)]
    sizes[0].save(file, "TIFF", save_all=True, append_images=sizes[1:])
    with pytest.raises(UnsuitableImage, match="2 pages of different sizes"):
        decode(file.getvalue(), 2)


def test_smaller_copies_are_no_pages():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(BANDS[::2, ::2, :3], photometric="rgb", subfiletype=1)
        writer.write(BANDS[:, :, :3], photometric="rgb")
        writer.write(BANDS[::4, ::4, :3], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(decode(file.getvalue()), BANDS[:, :, :3])


def test_orientation_of_bands_is_applied():
    data = banded(np.rot90(BANDS), extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(decode(data, 13), BANDS)


def test_without_tifffile_the_extra_is_named(monkeypatch):
    data, plain = banded(BANDS), tiff(BANDS[:, :, :3], "rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        UnsuitableImage, match=r"13 band.* pip install 'vit_jax\[tiff\]'"
    ):
        decode(data, 13)
    np.testing.assert_array_equal(decode(plain), BANDS[:, :, :3])


def test_too_many_pixels_are_refused(monkeypatch):
    data = banded(BANDS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="8×9 pixels are more than Pillow's limit"):
        decode(data, 13)
