"""Ordinary JPEGs, decoded by libjpeg-turbo directly and only as far as needed."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from vit_jax.data.any_format import decode_any

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Channels requested → libjpeg-turbo's name for them, and the colour spaces it may
# convert from. The luminance of a colour image is left to Pillow, which computes it
# from RGB.
_JPEG_COLORS = {1: ("GRAY", ("Gray",)), 3: ("RGB", ("Gray", "YCbCr", "RGB"))}
_EXIF_OR_XMP, _SCAN = 0xE1, 0xDA  # markers of segments: APP1, SOS
_SEQUENTIAL = (0xC0, 0xC1)  # SOF0, SOF1: rows are stored in order


@dataclasses.dataclass(frozen=True)
class PlainJpeg:
    """An upright grey or colour JPEG that is decoded only as far as it is needed.

    Attributes:
      shape: (height, width, channels).
      data: the file's bytes.
      name: the image's name in error messages.
      fast: whether to use libjpeg-turbo's fast cosine transform, TensorFlow's default.
        It gives the pixels that published pipelines train on, takes a twentieth less
        time, and differs from the exact pixels by less than 2 grey levels on average.
      height_at: offset of the height in `data`; 0 if only the whole image can be
        decoded, because its rows are not stored in order or its end is missing.
    """

    shape: tuple[int, int, int]
    data: bytes
    name: str
    fast: bool
    height_at: int

    def decode(self) -> np.ndarray:
        """Decodes the whole image to uint8 of `shape`; raises DecodeError."""
        try:
            return self._decoded(self.data, strict=True)
        except ValueError:
            # Pillow decides whether a damaged file can be read.
            return decode_any(self.data, self.shape[2], self.name)

    def __getitem__(self, box: tuple[slice, slice]) -> np.ndarray:
        """Decodes one box; the pixels are those of `decode()[box]`.

        This holds for damaged files as well, if the whole can be decoded. A file that
        cannot be decoded as a whole, because of a stray marker among the pixels, may
        pass here.
        """
        rows, _ = box
        # Colours are interpolated between rows, so the following rows matter too.
        height = rows.stop + 2
        if self.height_at and height < self.shape[0]:
            # libjpeg-turbo stops early in a copy whose header gives a smaller height.
            # It warns about the data that follow, hence not strict.
            lower = bytearray(self.data)
            lower[self.height_at : self.height_at + 2] = height.to_bytes(2, "big")
            with contextlib.suppress(ValueError):
                return self._decoded(lower, strict=False)[box]
        return self.decode()[box]

    def _decoded(self, data: bytes | bytearray, strict: bool) -> np.ndarray:
        colors, _ = _JPEG_COLORS[self.shape[2]]
        return simplejpeg.decode_jpeg(data, colors, fastdct=self.fast, strict=strict)


def plain_jpeg(data: bytes, channels: int, name: str, fast: bool) -> PlainJpeg | None:
    """Returns an upright grey or colour JPEG; None for all files left to Pillow."""
    if not data.startswith(_JPEG) or channels not in _JPEG_COLORS:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    too_large = int(height) * int(width) > (Image.MAX_IMAGE_PIXELS or 0)
    if colorspace not in _JPEG_COLORS[channels][1] or too_large:
        return None
    height_at = components = 0
    for marker, at in _segments(data):
        if marker == _EXIF_OR_XMP and _orientation(data) != 1:
            return None
        if marker in _SEQUENTIAL:
            # Length (two bytes), bits, height (two), width (two), components.
            height_at, components = at + 3, data[at + 7]
        elif marker == _SCAN and data[at + 2] != components:
            height_at = 0  # the pixels are divided among several scans
    if not data.endswith(_JPEG_END):
        height_at = 0
    shape = (int(height), int(width), channels)
    return PlainJpeg(shape, data, name, fast, height_at)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields (marker, position after it) of each segment; stops after the first scan.

    A segment is a marker, its length and its content (ITU T.81, B.1.1.4).
    """
    position, marker = 2, 0
    while position + 10 <= len(data) and data[position] == 0xFF and marker != _SCAN:
        marker = data[position + 1]
        yield marker, position + 2
        position += 2 + max(data[position + 2] << 8 | data[position + 3], 2)


def _orientation(data: bytes) -> int:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # an image with broken metadata is still readable
        return 1
