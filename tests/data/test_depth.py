"""Tests of deep pixels: which value becomes white, and what is refused."""

import io
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from vit_jax.data import any_format, depth
from vit_jax.data.decode import DecodeError, UnsuitableImage, decode
from vit_jax.data.preprocessing import Preprocessing

# Every value of 12 bits, and what it becomes if 4095 is white.
TWELVE = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SCALED = np.rint(np.arange(4096) * 255 / 4095).reshape(64, 64).astype(np.uint8)


def encode(pixels: np.ndarray, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png(pixels: np.ndarray, significant: int = 0) -> bytes:
    """Writes 16 bits, grey or colour, with a chunk sBIT if there are fewer."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if significant:
        data += chunk(b"sBIT", bytes([significant] * channels))
    return data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [png, tiff], ids=["PNG", "TIFF"])
def test_without_a_white_level_the_upper_half_is_kept(make):
    wide = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], "<u2")
    expected = np.array([[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]])
    for white_level in (0, 65535):
        decoded = decode(make(wide), 1, "x", white_level)
        np.testing.assert_array_equal(decoded[:, :, 0], expected)
    assert decode(make(wide)).shape == (2, 4, 3)
    colours = np.dstack([wide, wide[::-1], wide[:, ::-1]])
    np.testing.assert_array_equal(decode(make(colours)), colours >> 8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("make", [png, tiff], ids=["PNG", "TIFF"])
def test_white_level_keeps_the_grey_levels(make, channels):
    decoded = decode(make(TWELVE), channels, "x", 4095)
    np.testing.assert_array_equal(decoded[:, :, 0], SCALED)
    assert len(np.unique(decoded[:, :, 0])) == 256


@pytest.mark.parametrize("make", [png, tiff], ids=["PNG", "TIFF"])
def test_white_level_of_colours(make):
    colours = np.dstack([TWELVE, TWELVE[::-1], TWELVE[:, ::-1]])
    expected = np.dstack([SCALED, SCALED[::-1], SCALED[:, ::-1]])
    np.testing.assert_array_equal(decode(make(colours), 3, "x", 4095), expected)
    alpha = np.dstack([colours, TWELVE.T])
    decoded = decode(png(alpha), 4, "x", 4095)
    np.testing.assert_array_equal(decoded, np.dstack([expected, SCALED.T]))
    np.testing.assert_array_equal(decode(png(alpha), 3, "x", 4095), expected)


def test_grey_with_alpha():
    both = np.dstack([TWELVE, TWELVE.T])
    np.testing.assert_array_equal(decode(png(both), 1, "x", 4095)[:, :, 0], SCALED)
    np.testing.assert_array_equal(decode(png(both), 1)[:, :, 0], TWELVE >> 8)


def packed_twelve_bits() -> bytes:
    """Writes a TIFF of 12 bits per pixel: two pixels in three bytes."""
    left, right = TWELVE.reshape(-1, 2).T.astype(int)
    pixels = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], 1)
    strip = pixels.astype(np.uint8).tobytes()
    tags = [(256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, 64), (279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


WHITE_IS_SAID = {
    "12 bits per pixel": packed_twelve_bits(),
    "MaxSampleValue": encode(TWELVE, "TIFF", tiffinfo={281: 4095}),
    "SMaxSampleValue": tiff(TWELVE, extratags=[(341, "H", 1, 4095, True)]),
    "WhiteLevel": tiff(TWELVE, extratags=[(50717, "H", 1, 4095, True)]),
    "OME": encode(
        TWELVE, "TIFF", tiffinfo={270: '<OME><Pixels SignificantBits="12"/></OME>'}
    ),
    "sBIT, not scaled": png(TWELVE, 12),
}


@pytest.mark.parametrize("data", WHITE_IS_SAID.values(), ids=WHITE_IS_SAID)
@pytest.mark.parametrize("white_level", [0, 65535])
def test_white_from_the_file(data, white_level):
    decoded = decode(data, 1, "x", white_level)
    np.testing.assert_array_equal(decoded[:, :, 0], SCALED)


def test_scaled_pixels_with_significant_bits_use_the_whole_range():
    # The PNG standard, 11.3.2.7: writers scale; the lower bits repeat the upper ones.
    scaled = TWELVE << 4 | TWELVE >> 8
    dark = TWELVE >> 4 << 4
    for pixels in (scaled, dark):
        decoded = decode(png(pixels, 12), 1)[:, :, 0]
        np.testing.assert_array_equal(decoded, pixels >> 8)


def test_fewer_bits_say_the_white_of_unsigned_values_only():
    for sample_format, white in ((1, 2.0**24 - 1), (2, None), (3, None)):
        assert depth.white_in_tags({258: (24,), 339: sample_format}, 32) == white


def test_largest_value_of_one_image_is_not_white():
    # Cameras write the brightest pixel into this tag; a dark image stays dark.
    dark = encode(TWELVE // 4, "TIFF", tiffinfo={281: 1000})
    np.testing.assert_array_equal(decode(dark, 1)[:, :, 0], TWELVE // 4 >> 8)
    wrong = encode(TWELVE, "TIFF", tiffinfo={281: 1023})  # contradicts the pixels
    np.testing.assert_array_equal(decode(wrong, 1)[:, :, 0], TWELVE >> 8)


def test_jpeg2000_says_its_bits():
    sixteen = encode(TWELVE, "JPEG2000")  # lossless
    np.testing.assert_array_equal(decode(sixteen, 1)[:, :, 0], TWELVE >> 8)
    np.testing.assert_array_equal(decode(sixteen, 1, "x", 4095)[:, :, 0], SCALED)
    # The coded numbers are the pixels less half the range, 2^15, or 2^11 of 12 bits.
    coded = encode(TWELVE + (1 << 15) - (1 << 11), "JPEG2000")
    at = coded.index(b"\xff\x4f\xff\x51") + 42
    assert coded[at] == 15  # bits less one
    twelve = coded[:at] + b"\x0b" + coded[at + 1 :]
    for white_level in (0, 4095):  # Pillow shifts 12 bits to 16
        decoded = decode(twelve, 1, "x", white_level)[:, :, 0]
        assert abs(decoded.astype(int) - SCALED).max() <= 1


@pytest.mark.parametrize("bits", [16, 12])
def test_white_of_jpeg2000_stays_white(bits):
    # Pillow's rounding overflows: it makes the brightest colours black.
    wide = np.tile(np.linspace(0, 2**bits - 1, 64).astype(np.uint16), (64, 1))
    colours = np.dstack([wide, wide[:, ::-1], wide.T])
    # The coded numbers are the pixels less half the range.
    coded = (colours + ((1 << 15) - (1 << bits - 1)))[:, :, ::-1]
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    _, file = cv2.imencode(".jp2", coded, options)
    data = bytearray(file.tobytes())
    at = data.index(b"\xff\x4f\xff\x51") + 42
    for channel in range(3):
        assert data[at + 3 * channel] == 15  # bits less one
        data[at + 3 * channel] = bits - 1
    decoded = decode(bytes(data)).astype(int)
    expected = colours >> 8 if bits == 16 else np.rint(colours * (255 / 4095))
    assert abs(decoded - expected).max() <= 1
    assert decoded.max() == 255


def test_deep_colours_of_jpeg2000():
    colours = np.dstack([TWELVE] * 3)
    colours[:, :, 2] = 0  # OpenCV's red, which it stores last
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    _, file = cv2.imencode(".jp2", colours, options)
    decoded = decode(file.tobytes(), 3, "x", 4095)
    assert abs(decoded[:, :, 2].astype(int) - SCALED).max() <= 2
    assert decoded[:, :, 0].max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_zero_is_white_where_the_file_says_so(bits):
    values = TWELVE << 4 if bits == 16 else (TWELVE >> 4).astype(np.uint8)
    inverted = decode(tiff(values, photometric="miniswhite"), 1)
    expected = (65535 - values) >> 8 if bits == 16 else 255 - values
    np.testing.assert_array_equal(inverted[:, :, 0], expected)
    if bits == 16:
        data = tiff(TWELVE, photometric="miniswhite")
        decoded = decode(data, 1, "x", 4095)[:, :, 0]
        np.testing.assert_array_equal(decoded, SCALED[::-1, ::-1])


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_both_byte_orders_have_the_same_default(byteorder):
    # ImageJ writes the most significant byte first.
    wide = TWELVE << 4
    data = tiff(wide, byteorder=byteorder)
    np.testing.assert_array_equal(decode(data, 1)[:, :, 0], wide >> 8)
    pages = np.stack([wide, wide.T])
    stack = tiff(pages, byteorder=byteorder, photometric="minisblack")
    np.testing.assert_array_equal(decode(stack, 2), np.moveaxis(pages >> 8, 0, 2))
    deep = decode(tiff(TWELVE, byteorder=byteorder), 1, "x", 4095)
    np.testing.assert_array_equal(deep[:, :, 0], SCALED)


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_deep_colours_in_planes(compression, number):
    # Pillow reads uncompressed ones as if they had 8 bits.
    planes = np.stack([TWELVE, TWELVE[::-1], TWELVE[:, ::-1], TWELVE.T])[:number]
    extra = ["unassalpha"] * (number - 3)
    options = {"planarconfig": "separate", "extrasamples": extra}
    options |= {"photometric": "rgb", "compression": compression}
    deep, wide = tiff(planes, **options), tiff(planes << 4, **options)
    colours = np.moveaxis(planes, 0, 2)
    scaled = np.rint(colours * (255 / 4095)).astype(np.uint8)
    for channels in {3, number}:
        expected = scaled[:, :, :channels]
        np.testing.assert_array_equal(decode(deep, channels, "x", 4095), expected)
        np.testing.assert_array_equal(
            decode(wide, channels), (colours >> 4)[:, :, :channels]
        )


def test_alpha_that_is_dropped_may_exceed_white():
    full = np.full_like(TWELVE, 65535)
    colours, expected = np.dstack([TWELVE] * 3 + [full]), np.dstack([SCALED] * 3)
    grey = tiff(
        np.dstack([TWELVE, full]),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    for data in (png(colours), png(np.dstack([TWELVE, full])), tiff(colours), grey):
        np.testing.assert_array_equal(decode(data, 3, "x", 4095), expected)
    with pytest.raises(UnsuitableImage, match="the value 65535, above 4095"):
        decode(png(colours), 4, "x", 4095)


def test_ink_is_not_scaled_as_brightness():
    inks = np.dstack([TWELVE] * 4)
    data = tiff(inks, photometric="separated")
    plain = Image.fromarray((inks >> 8).astype(np.uint8), "CMYK").convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(plain))
    with pytest.raises(
        UnsuitableImage, match=r"16 bits are inks \(CMYK\), which cannot"
    ):
        decode(data, 3, "x", 4095)
    lab = tiff(inks[:, :, :3], photometric="cielab")  # Pillow reads 8 bits only
    with pytest.raises(UnsuitableImage, match="16 bits are colours as Lab"):
        decode(lab)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((2, 2), -5, np.int16), "signed 16-bit integer pixels down to -5, but"),
        (np.full((2, 2), 5, np.int16), "signed 16-bit integer pixels; convert it to 8"),
        (np.full((2, 2), -5, np.int8), "signed 8-bit integer pixels down to -5, but"),
        (np.full((2, 2, 3), 5, np.int8), "signed 8-bit integer pixels; convert"),
        (np.full((2, 2), 200, np.int32), "32-bit integer pixels; convert it to 8"),
        (np.full((2, 2), 70_000, np.int32), "32-bit integer pixels"),
        (np.full((2, 2), 7, np.uint32), "32-bit integer pixels"),
        (np.ones((2, 2), np.float32), "floating-point pixels; convert .*white_level"),
        (np.ones((2, 2), np.float64), "floating-point pixels"),
        (np.ones((2, 2, 3), np.float32), "floating-point pixels"),
    ],
)
def test_other_types_need_a_white_level(values, what):
    with pytest.raises(UnsuitableImage, match=f"^x cannot be used: {what}"):
        decode(tiff(values), 3, "x")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32, float])
def test_white_level_serves_other_types(dtype):
    decoded = decode(tiff(TWELVE.astype(dtype)), 1, "x", 4095)
    np.testing.assert_array_equal(decoded[:, :, 0], SCALED)


def test_white_level_of_signed_bytes():
    values = np.arange(128, dtype=np.int8).reshape(8, 16)
    decoded = decode(tiff(values), 1, "x", 127)[:, :, 0]
    np.testing.assert_array_equal(decoded, np.rint(values * (255 / 127)))


def test_fractions_with_one_as_white():
    decoded = decode(tiff(TWELVE / np.float32(4095)), 1, "x", 1.0)
    np.testing.assert_array_equal(decoded[:, :, 0], SCALED)
    said = tiff(TWELVE / np.float32(4095), extratags=[(341, "f", 1, 1.0, True)])
    np.testing.assert_array_equal(decode(said, 1)[:, :, 0], SCALED)


def test_values_outside_the_range_are_refused_not_clipped():
    for data in (png(TWELVE), tiff(TWELVE), tiff(TWELVE.astype(np.float32))):
        with pytest.raises(UnsuitableImage, match="value 4095, above 2047, which is w"):
            decode(data, 1, "x", 2047)
    # By less than half a grey level: rounded.
    assert decode(png(np.full((1, 1), 4100, np.uint16)), 1, "x", 4095) == 255
    negative = tiff(TWELVE.astype(np.int16) - 100)
    with pytest.raises(UnsuitableImage, match="the value -100, but black is 0"):
        decode(negative, 1, "x", 4095)
    with pytest.raises(UnsuitableImage, match="value 4095, above 2047"):
        decode(tiff(TWELVE, photometric="miniswhite"), 1, "x", 2047)
    with pytest.raises(UnsuitableImage, match="not finite numbers"):
        decode(tiff(np.array([[np.nan, 1]], np.float32)), 1, "x", 1.0)


def test_unused_bits_are_warned_of_once(monkeypatch, caplog):
    for data in (png(TWELVE), png(np.dstack([TWELVE] * 3)), tiff(TWELVE)):
        monkeypatch.setattr(any_format, "_warned", False)
        caplog.clear()
        for _ in range(2):
            decode(data, 3, "scan.png")
        (line,) = (record.message for record in caplog.records)
        assert line.startswith("scan.png has no value above ")
        assert line.endswith("white_level, for 12 bits to 4095")
        assert caplog.records[0].levelno == logging.WARNING
    monkeypatch.setattr(any_format, "_warned", False)
    caplog.clear()
    decode(png(TWELVE), 3, "x", 4095)
    decode(png(TWELVE << 4), 3, "x")
    assert not caplog.records


def test_white_level_is_saved_with_the_model(tmp_path):
    made = Preprocessing((64, 64), channels=1, white_level=4095)
    values = made.to_dict()
    assert values["white_level"] == 4095
    again = Preprocessing.from_dict(values)
    (tmp_path / "x.png").write_bytes(png(TWELVE))
    np.testing.assert_array_equal(again.prepare(tmp_path / "x.png")[:, :, 0], SCALED)
    # Releases that do not know it read what does not need it.
    assert "white_level" not in Preprocessing((64, 64)).to_dict()
    assert Preprocessing.from_dict(Preprocessing((8, 8)).to_dict()).white_level == 0
    assert made.for_white(0) == made
    assert made.for_white(1023).white_level == 1023
    assert made.for_images((32, 32), 3).white_level == 4095


def test_truncated_deep_files_are_damaged():
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64, 3), dtype=np.uint16)
    for data in (png(noise), tiff(noise), tiff(noise.astype(np.float32))):
        with pytest.raises(DecodeError, match=r"^x cannot be decoded: .") as error:
            decode(data[: len(data) // 2], 3, "x", 4095)
        assert not isinstance(error.value, UnsuitableImage)
