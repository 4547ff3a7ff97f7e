"""Tests of decoding: every format and colour mode, and broken files."""

import importlib.resources
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageSequence

from vit_jax.data.decode import (
    FORMATS,
    DecodeError,
    decode,
    open_image,
    with_channels,
)
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


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
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


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_bits(file_format):
    wide = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], "<u2")
    data = encode(Image.fromarray(wide), file_format)
    expected = np.array([[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]])
    np.testing.assert_array_equal(decode(data, channels=1)[:, :, 0], expected)
    assert decode(data).shape == (2, 4, 3)


def test_sixteen_bit_colour_png():
    rows = b"".join(
        b"\0" + struct.pack(">6H", 0x1234, 0x8000, 0xFFFF, 0, 0x00FF, 0xFF00)
        for _ in range(2)
    )

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = [[0x12, 0x80, 0xFF], [0, 0, 0xFF]]
    np.testing.assert_array_equal(decode(data)[1], expected)


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


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Makes coarse noise, which shows every difference between decoders."""
    random = np.random.default_rng(height * width)
    small = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (8, 200)])
@pytest.mark.parametrize("options", [{"subsampling": s} for s in (0, 1, 2)] + [
    {"progressive": True}, {"keep_rgb": True}, {"quality": 5},
    {"icc_profile": b"x" * 100}, {"comment": b"Exif\0\0 said in passing"},
])  # fmt: skip
def test_plain_jpegs_have_pillows_pixels(mode, size, options, monkeypatch):
    data = encode(noise(*size, mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    if "comment" not in options:  # these must not need Pillow
        monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(decode(data), expected)
    if mode == "L":
        np.testing.assert_array_equal(decode(data, 1), expected[:, :, :1])


BOXES = [
    (slice(top, bottom), slice(3, 31))
    for top, bottom in ((0, 1), (0, 15), (1, 16), (7, 17), (20, 33), (40, 70), (69, 70))
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", None])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}])
def test_jpeg_box_is_decoded_only_to_its_last_row(
    channels, subsampling, options, monkeypatch
):
    picture = noise(70, 47, "RGB" if subsampling and channels == 3 else "L")
    if picture.mode == "RGB":
        options = {**options, "subsampling": subsampling}
    image = open_image(encode(picture, "JPEG", quality=90, **options), channels)
    expected, heights = image.decode(), []
    decoder = simplejpeg.decode_jpeg

    def spy(*args, **kwargs):
        pixels = decoder(*args, **kwargs)
        heights.append(len(pixels))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for box in BOXES:
        np.testing.assert_array_equal(image[box], expected[box])
    assert heights == [min(70, rows.stop + 2) for rows, _ in BOXES]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_fast_decoding_is_less_than_two_grey_levels_off(name):
    folder = importlib.resources.files("sklearn.datasets.images")
    file = io.BytesIO()
    with Image.open(io.BytesIO((folder / name).read_bytes())) as photograph:
        photograph.save(file, "JPEG", quality=95, subsampling="4:2:0")
    exact, fast = (
        open_image(file.getvalue(), fast=fast)[100:300, 100:400].astype(float)
        for fast in (False, True)
    )
    assert 0 < abs(exact - fast).mean() < 2


@pytest.mark.parametrize("kind", ["progressive", "end missing", "scans apart"])
def test_box_of_other_jpegs_is_cut_from_the_whole(kind):
    picture = noise(70, 47)
    data = encode(picture, "JPEG", progressive=kind == "progressive")
    if kind == "end missing":
        data = data[:-2]
    elif kind == "scans apart":
        start = data.index(b"\xff\xda")
        # A first scan of one component instead of three.
        one = b"\xff\xda\0\x08\1" + data[start + 5 : start + 7] + b"\0\x3f\0"
        data = data[:start] + one + data[start + 14 :]
    image = open_image(data)
    assert image.height_at == 0
    rows, columns = BOXES[1]
    try:
        expected = decode(data)[rows, columns]
    except DecodeError as error:
        with pytest.raises(DecodeError, match=str(error)[:20]):
            image[rows, columns]
    else:
        np.testing.assert_array_equal(image[rows, columns], expected)


def test_box_of_a_broken_jpeg_is_pixels_or_an_error():
    random, outcomes = np.random.default_rng(0), set()
    data = np.frombuffer(encode(noise(70, 47), "JPEG"), np.uint8)
    for _ in range(200):
        broken = data.copy()
        places = random.integers(0, len(data), 8)
        broken[places] = random.integers(0, 256, 8)
        try:
            image = open_image(broken.tobytes(), name="x")
            outcomes.add(image[:20, :20].shape == (20, 20, 3))
        except DecodeError as error:
            outcomes.add(str(error)[:1])
    assert outcomes == {True, "x"}


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    upside_down = Image.fromarray(quadrants()).rotate(180)
    decoded = decode(encode(upside_down, "JPEG", xmp=xmp, quality=95))
    assert abs(centres(decoded) - centres(quadrants())).max() <= 12


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animation_gives_its_first_frame(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"save_all": True, "append_images": frames[1:]}
    data = encode(frames[0], file_format, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert len(list(ImageSequence.Iterator(image))) == 3
    assert abs(decode(data)[4, 4].astype(int) - RED).max() <= 12


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
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
    for file_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
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


@pytest.mark.parametrize("value", [200, 70_000])
def test_values_beyond_sixteen_bits_are_refused(value):
    data = encode(Image.fromarray(np.full((2, 2), value, np.int32)), "TIFF")
    with pytest.raises(DecodeError, match="32-bit integer pixels; convert it to 8"):
        decode(data)
    data = encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(DecodeError, match="floating-point"):
        decode(data)


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
    with pytest.raises(UserError, match="5 channels requested"):
        decode(b"x", channels=5)
