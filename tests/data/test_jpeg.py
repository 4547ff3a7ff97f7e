"""Tests of ordinary JPEGs, which are decoded only as far as needed."""

import importlib.resources
import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vit_jax.data.decode import DecodeError, decode, open_image


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


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
