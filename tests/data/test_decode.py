"""Tests of decoding: every format and colour mode, and broken files."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence

from vit_jax.data.any_format import from_pillow
from vit_jax.data.decode import DecodeError, UnsuitableImage, decode, with_channels
from vit_jax.data.formats import FORMATS
from vit_jax.errors import UserError

# Four flat quadrants survive every lossy format.
RED, GREEN, BLUE, GREY = (250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)
LOSSLESS = ("PNG", "BMP", "TIFF")


def quadrants() -> np.ndarray:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:] = RED, GREEN
    pixels[16:, :24], pixels[16:, 24:] = BLUE, GREY
    return pixels


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Makes a chunk of a PNG file."""
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def centres(pixels: np.ndarray) -> np.ndarray:
    """Returns the middle pixel of each quadrant, [4, c]."""
    h, w, _ = pixels.shape
    return np.stack(
        [pixels[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]
    ).astype(int)


SAVED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")


@pytest.mark.parametrize("file_format", SAVED)
def test_every_format_keeps_its_colours(file_format):
    image = Image.fromarray(quadrants())
    decoded = decode(encode(image, file_format), name="x")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (32, 48, 3)
    tolerance = 0 if file_format in LOSSLESS else 12
    assert abs(centres(decoded) - centres(quadrants())).max() <= tolerance
    assert file_format in FORMATS


def test_grey_becomes_one_or_three_equal_channels():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    data = encode(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(decode(data), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(decode(data, channels=1), grey[:, :, None])


def test_colour_becomes_luminance_in_one_channel():
    data = encode(Image.new("RGB", (4, 4), (200, 100, 50)), "PNG")
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert abs(int(decode(data, channels=1)[0, 0, 0]) - expected) <= 1


def test_bilevel_is_black_and_white():
    bits = np.eye(8, dtype=bool)
    data = encode(Image.fromarray(bits), "PNG")
    np.testing.assert_array_equal(decode(data, channels=1)[:, :, 0], bits * 255)


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128, 7])])
def test_palette_keeps_colours_with_any_transparency(transparency):
    image = Image.new("P", (4, 1))
    image.putpalette([*RED, *GREEN, *BLUE, *GREY])
    image.putdata([0, 1, 2, 3])
    options = {} if transparency is None else {"transparency": transparency}
    decoded = decode(encode(image, "PNG", **options))
    np.testing.assert_array_equal(decoded[0], [RED, GREEN, BLUE, GREY])


def test_alpha_is_dropped_not_blended():
    rgba = np.dstack([quadrants(), np.full((32, 48), 3, np.uint8)])
    data = encode(Image.fromarray(rgba), "PNG")
    np.testing.assert_array_equal(decode(data), quadrants())
    np.testing.assert_array_equal(decode(data, channels=4), rgba)
    la = Image.merge("LA", [Image.new("L", (4, 4), 77), Image.new("L", (4, 4), 9)])
    assert (decode(encode(la, "PNG")) == 77).all()


def test_cmyk_jpeg():
    # Cyan, magenta, yellow and black inks, 0…255, are subtracted from white.
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :] = (200, 0, 0, 50)
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    expected = [(255 - ink) * (255 - 50) / 255 for ink in (200, 0, 0)]
    assert abs(decode(data)[8, 8].astype(float) - expected).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = quadrants()
    # The camera stores the inverse of the viewer's transform (EXIF 2.3 §4.6.4).
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](upright)
    image = Image.fromarray(np.ascontiguousarray(stored))
    decoded = decode(encode(image, "JPEG", exif=exif, quality=95))
    assert decoded.shape == (32, 48, 3)
    assert abs(centres(decoded) - centres(upright)).max() <= 12


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    upside_down = Image.fromarray(quadrants()).rotate(180)
    decoded = decode(encode(upside_down, "JPEG", xmp=xmp, quality=95))
    assert abs(centres(decoded) - centres(quadrants())).max() <= 12


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animation_gives_its_first_frame(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"save_all": True, "append_images": frames[1:]}
    data = encode(frames[0], file_format, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert len(list(ImageSequence.Iterator(image))) == 3
    assert abs(decode(data)[4, 4].astype(int) - RED).max() <= 12


@pytest.mark.parametrize("file_format", SAVED)
def test_truncated_file_error_names_it(file_format):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    with pytest.raises(DecodeError, match=r"^bird\.x cannot be decoded: ."):
        decode(data[: len(data) // 2], name="bird.x")


def test_errors_of_empty_and_foreign_files_name_them():
    with pytest.raises(DecodeError, match=r"^bird\.jpg is empty \(0 bytes\)$"):
        decode(b"", name="bird.jpg")
    with pytest.raises(DecodeError, match=r"bird\.jpg .* 12 bytes .* none of .*JPEG"):
        decode(b"<html></htm>", name="bird.jpg")
    with pytest.raises(DecodeError, match="none of the formats"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", name="bird.eps")


def test_corrupt_bytes_raise_only_decode_errors():
    random = np.random.default_rng(0)
    image = Image.fromarray(quadrants())
    outcomes = set()
    for file_format in SAVED:
        whole = np.frombuffer(encode(image, file_format), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            places = random.integers(0, len(whole), 8)
            broken[places] = random.integers(0, 256, 8)
            try:
                outcomes.add(decode(broken.tobytes(), name="x").dtype.name)
            except DecodeError as error:
                outcomes.add(str(error)[:1])
    assert outcomes == {"uint8", "x"}  # some survive, some are refused by name


def test_decompression_bomb_is_refused():
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error must refuse it, not the warning
        with pytest.raises(DecodeError, match=r"x cannot be decoded: .*pixels"):
            decode(data, name="x")


def test_arrays_get_the_requested_channels():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert with_channels(grey, 1).shape == (2, 3, 1)
    np.testing.assert_array_equal(with_channels(grey, 3)[:, :, 2], grey)
    colour = quadrants()
    assert with_channels(colour, 3) is colour
    assert with_channels(colour, 1).shape == (32, 48, 1)
    rgba = np.dstack([colour, colour[:, :, :1]])
    np.testing.assert_array_equal(with_channels(rgba, 3), colour)
    with pytest.raises(UserError, match="5 channels, the model takes 3"):
        with_channels(np.zeros((2, 2, 5), np.uint8), 3)
    for wrong in (np.zeros((2, 2, 3)), np.zeros((1, 2, 2, 3), np.uint8)):
        with pytest.raises(UserError, match=r"expected uint8 \[height"):
            with_channels(wrong, 3)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (np.full((2, 2, 3), 0.5), "scale it so that black is 0 and white 255, round"),
        (np.full((2, 2, 3), 256, np.uint16), "scale it so that black is 0 and white"),
        (np.full((2, 2, 3), 255), "its values fit, so convert it with astype"),
        (np.full((2, 2, 3), -1), "scale it so that black is 0"),
        (np.full((2, 2), True), r"multiply it by np.uint8\(255\)"),
    ],
)
def test_arrays_of_other_types_are_refused_with_a_remedy(values, remedy):
    with pytest.raises(UserError, match=f"x is an array of {values.dtype}.*: {remedy}"):
        with_channels(values, 3, "x")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_files_of_another_number_of_channels_are_refused(file_format):
    data = encode(Image.new("RGB", (4, 4)), file_format)
    with pytest.raises(UnsuitableImage, match="x cannot be used: it has 3 channels, a"):
        decode(data, channels=5, name="x")
    both = encode(Image.new("LA", (4, 4), (7, 9)), "PNG")
    np.testing.assert_array_equal(decode(both, channels=2)[0, 0], [7, 9])


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_orientation_of_other_formats_is_applied(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(quadrants())))
    decoded = decode(encode(stored, file_format, exif=exif))
    np.testing.assert_array_equal(decoded, quadrants())


def test_modes_that_pillow_does_not_convert_to_grey():
    colour = quadrants()
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    alpha = np.dstack([grey, np.full_like(grey, 255)])
    premultiplied = Image.fromarray(alpha, "LA").convert("La")
    for channels in (1, 3):
        pixels = from_pillow(premultiplied, channels, "x")
        np.testing.assert_array_equal(pixels, np.dstack([grey] * channels))
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(colour), transform)
    assert lab.mode == "LAB"
    found = from_pillow(lab, 1, "x")[:, :, 0].astype(int)
    assert abs(found - grey).max() <= 10  # Lab of 8 bits
