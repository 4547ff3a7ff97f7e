"""Encoded image files to uint8 pixels, whatever way they were written."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from vit_jax.errors import UserError

# What may be inside a file, whatever its name ends in. Other formats that Pillow
# knows stay closed: some of them start other programs. (JPEG includes MPO.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
# Pillow loads its plugins at the first use, which is not safe from several threads.
Image.init()

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Channels asked for → what libjpeg-turbo calls them, and what it makes them of. The
# luminance of a colour image is Pillow's to compute: it takes it of the colours.
_JPEG_COLORS = {1: ("GRAY", ("Gray",)), 3: ("RGB", ("Gray", "YCbCr", "RGB"))}
_EXIF_OR_XMP, _SCAN = 0xE1, 0xDA  # markers of segments: APP1, SOS
_SEQUENTIAL = (0xC0, 0xC1)  # SOF0, SOF1: the frame's rows follow each other
_MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = {"I": "32-bit integer", "F": "floating-point"}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class DecodeError(UserError):
    """An image that cannot be read; the message names it and the reason."""


@dataclasses.dataclass(frozen=True)
class PlainJpeg:
    """An upright JPEG in grey or colour, decoded no further than what is cut out of it.

    Attributes:
      shape: (height, width, channels).
      data: the file's bytes.
      name: what to call the image in an error.
      fast: with libjpeg-turbo's fast cosine transform, which is TensorFlow's default:
        the pixels that published pipelines train on, a twentieth faster to get, and
        less than 2 grey levels from the exact ones in the mean.
      height_at: where its height stands in the bytes; 0 where its rows do not follow
        each other, or their end is missing, so that only the whole can be decoded.
    """

    shape: tuple[int, int, int]
    data: bytes
    name: str
    fast: bool
    height_at: int

    def decode(self) -> np.ndarray:
        """The whole, uint8 of `shape`; DecodeError where it cannot be read."""
        try:
            return self._decoded(self.data, strict=True)
        except ValueError:
            # Whether a damaged file can be read is Pillow's to judge.
            return _decoded_by_pillow(self.data, self.shape[2], self.name)

    def __getitem__(self, box: tuple[slice, slice]) -> np.ndarray:
        """The same pixels as `decode()[box]`.

        Of damaged files too, as far as the whole can be read; what cannot, for a stray
        marker among the pixels, may pass here.
        """
        rows, _ = box
        # Colours are interpolated between rows: the next one's count as well.
        height = rows.stop + 2
        if self.height_at and height < self.shape[0]:
            # A copy that says it is lower is read up to there. What follows is noticed,
            # and no error: hence not strict.
            lower = bytearray(self.data)
            lower[self.height_at : self.height_at + 2] = height.to_bytes(2, "big")
            with contextlib.suppress(ValueError):
                return self._decoded(lower, strict=False)[box]
        return self.decode()[box]

    def _decoded(self, data: bytes | bytearray, strict: bool) -> np.ndarray:
        colors, _ = _JPEG_COLORS[self.shape[2]]
        return simplejpeg.decode_jpeg(data, colors, fastdct=self.fast, strict=strict)


Opened: TypeAlias = "np.ndarray | PlainJpeg"


def decode(data: bytes, channels: int = 3, name: str = "") -> np.ndarray:
    """Decodes one image file.

    Grey becomes three equal channels, colour becomes luminance when one channel is
    asked for. Alpha is dropped, not blended, as the published pipelines do; 16 bits
    keep their upper 8; the EXIF orientation is applied; of an animation the first
    frame counts. Ordinary JPEGs are decoded by libjpeg-turbo directly, in half of the
    time and to the same pixels.

    Args:
      data: the file's bytes.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      name: what to call the image in an error.

    Returns:
      uint8 [h, w, channels].

    Raises:
      DecodeError: empty, truncated, corrupt, not an image, or so large when unpacked
        that it is taken for an attack (Pillow's limit).
    """
    return whole(open_image(data, channels, name))


def open_image(
    data: bytes, channels: int = 3, name: str = "", fast: bool = False
) -> Opened:
    """As `decode`, but an ordinary JPEG is decoded when it is known what is needed.

    With `fast` it is decoded as `PlainJpeg` says: for training, which changes the
    pixels more than that.
    """
    if channels not in _MODE_OF_CHANNELS:
        raise UserError(
            f"image files hold 1, 3 or 4 channels, {channels} are asked for. "
            "Pass arrays for other numbers of channels."
        )
    if not data:
        raise DecodeError(f"{name or 'image'} is empty (0 bytes)")
    jpeg = _plain_jpeg(data, channels, name, fast)
    return jpeg or _decoded_by_pillow(data, channels, name)


def whole(image: Opened) -> np.ndarray:
    """All the pixels of what `open_image` has opened."""
    return image.decode() if isinstance(image, PlainJpeg) else image


def with_channels(pixels: np.ndarray, channels: int, name: str = "") -> np.ndarray:
    """Pixels that are already decoded, with the number of channels asked for.

    Args:
      pixels: uint8 [h, w] or [h, w, c].
      channels: what the model takes.
      name: what to call the image in an error.

    Returns:
      uint8 [h, w, channels], the same array where nothing is to be changed.

    Raises:
      UserError: another type or shape, or no way from c to `channels`.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UserError(
            f"{name or 'image'} is an array of {pixels.dtype} with shape "
            f"{pixels.shape}; expected uint8 [height, width, channels] in 0…255"
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if found == 4 and channels == 3:
        return pixels[:, :, :3]
    if found in (3, 4) and channels == 1:
        return np.asarray(Image.fromarray(pixels[:, :, :3]).convert("L"))[:, :, None]
    raise UserError(
        f"{name or 'image'} has {found} channels, the model takes {channels}. "
        "Set model.channels to the images', or convert the images."
    )


def _plain_jpeg(data: bytes, channels: int, name: str, fast: bool) -> PlainJpeg | None:
    """An upright JPEG in grey or colour; None of all else, which Pillow decodes."""
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
            height_at = 0  # one scan of several
    if not data.endswith(_JPEG_END):
        height_at = 0
    shape = (int(height), int(width), channels)
    return PlainJpeg(shape, data, name, fast, height_at)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position behind it) of the segments up to the first scan, and of it.

    A segment is a marker, its length and its content (ITU T.81, B.1.1.4).
    """
    position, marker = 2, 0
    while position + 10 <= len(data) and data[position] == 0xFF and marker != _SCAN:
        marker = data[position + 1]
        yield marker, position + 2
        position += 2 + max(data[position + 2] << 8 | data[position + 3], 2)


def _decoded_by_pillow(data: bytes, channels: int, name: str) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        pixels = _to_eight_bits(_upright(image), _MODE_OF_CHANNELS[channels])
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"its {len(data):,} bytes are in none of the formats " + (
                ", ".join(FORMATS)
            )
        raise DecodeError(f"{name or 'image'} cannot be decoded: {reason}") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _orientation(data: bytes) -> int:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _upright
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata must not cost a readable picture
        return image


def _to_eight_bits(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in _WIDE_MODES:
        # Nothing in the file says which of their values is white.
        raise ValueError(
            f"{_WIDE_MODES[image.mode]} pixels; convert it to 8 or 16 bits a channel"
        )
    elif image.mode in ("P", "PA"):
        # Straight to RGB, Pillow warns about palettes whose entries have alpha.
        image = image.convert("RGBA")
    return np.asarray(image.convert(mode))
