"""Decoding of image files to uint8 pixels, for every format and colour mode."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from vit_jax.errors import UserError

# The contents decide, not the file's extension. Pillow's other formats stay disabled
# because some of them start other programs. (JPEG includes MPO.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
# Pillow loads its plugins on first use, which is not thread-safe.
Image.init()

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Channels requested → libjpeg-turbo's name for them, and the colour spaces it may
# convert from. The luminance of a colour image is left to Pillow, which computes it
# from RGB.
_JPEG_COLORS = {1: ("GRAY", ("Gray",)), 3: ("RGB", ("Gray", "YCbCr", "RGB"))}
_EXIF_OR_XMP, _SCAN = 0xE1, 0xDA  # markers of segments: APP1, SOS
_SEQUENTIAL = (0xC0, 0xC1)  # SOF0, SOF1: rows are stored in order
_MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = {"I": "32-bit integer", "F": "floating-point"}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class DecodeError(UserError):
    """An image that cannot be read; the message gives its name and the reason."""


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
            return _decoded_by_pillow(self.data, self.shape[2], self.name)

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


Opened: TypeAlias = "np.ndarray | PlainJpeg"


def decode(data: bytes, channels: int = 3, name: str = "") -> np.ndarray:
    """Decodes one image file.

    Grey becomes three equal channels; colour becomes luminance if one channel is
    requested. Alpha is dropped rather than blended, as in the published pipelines;
    16-bit values keep their upper 8 bits; the EXIF orientation is applied; an animation
    gives its first frame. Ordinary JPEGs are decoded by libjpeg-turbo directly, in half
    the time and to the same pixels.

    Args:
      data: the file's bytes.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      name: the image's name in error messages.

    Returns:
      uint8 [h, w, channels].

    Raises:
      DecodeError: the file is empty, truncated, corrupt, not an image, or so large
        when unpacked that Pillow's limit treats it as an attack.
    """
    return whole(open_image(data, channels, name))


def open_image(
    data: bytes, channels: int = 3, name: str = "", fast: bool = False
) -> Opened:
    """Opens an image file like `decode`, but defers decoding of an ordinary JPEG.

    `fast` (see `PlainJpeg`) is for training, where augmentation changes the pixels more
    than the fast transform does.
    """
    _check_channels(channels)
    if not data:
        raise DecodeError(f"{name or 'image'} is empty (0 bytes)")
    jpeg = _plain_jpeg(data, channels, name, fast)
    return jpeg or _decoded_by_pillow(data, channels, name)


def whole(image: Opened) -> np.ndarray:
    """Returns all pixels of an image that `open_image` opened."""
    return image.decode() if isinstance(image, PlainJpeg) else image


def with_channels(pixels: np.ndarray, channels: int, name: str = "") -> np.ndarray:
    """Converts decoded pixels to the requested number of channels.

    Args:
      pixels: uint8 [h, w] or [h, w, c].
      channels: the number of channels that the model takes.
      name: the image's name in error messages.

    Returns:
      uint8 [h, w, channels]; the same array if nothing has to change.

    Raises:
      UserError: wrong dtype or shape, or c channels cannot become `channels`.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UserError(
            f"{name or 'image'} is an array of {pixels.dtype} with shape "
            f"{pixels.shape}; expected uint8 [height, width, channels], values 0…255"
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
        "Set model.channels to the images' number, or convert the images."
    )


def _plain_jpeg(data: bytes, channels: int, name: str, fast: bool) -> PlainJpeg | None:
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


def from_pillow(image: Image.Image, channels: int, name: str = "") -> np.ndarray:
    """Converts an image of Pillow, in any mode, like one that `decode` has opened.

    Raises:
      DecodeError: its file is truncated or closed, or its mode has no fixed white.
    """
    _check_channels(channels)
    try:
        return _pixels(image, channels)
    except MemoryError:
        raise
    except Exception as error:  # as for a file
        reason = str(error) or type(error).__name__
        raise DecodeError(f"{name or 'image'} cannot be decoded: {reason}") from error


def _check_channels(channels: int) -> None:
    if channels not in _MODE_OF_CHANNELS:
        raise UserError(
            f"{channels} channels requested, but image files hold 1, 3 or 4. "
            "Pass arrays for other numbers of channels."
        )


def _decoded_by_pillow(data: bytes, channels: int, name: str) -> np.ndarray:
    try:
        return _pixels(Image.open(io.BytesIO(data), formats=FORMATS), channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen types for broken files
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"its {len(data):,} bytes are in none of the formats " + (
                ", ".join(FORMATS)
            )
        raise DecodeError(f"{name or 'image'} cannot be decoded: {reason}") from error


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    image.load()
    pixels = _to_eight_bits(_upright(image), _MODE_OF_CHANNELS[channels])
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _orientation(data: bytes) -> int:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata, see _upright
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an image with broken metadata is still readable
        return image


def _to_eight_bits(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in _WIDE_MODES:
        # The file does not record which value is white.
        raise ValueError(
            f"{_WIDE_MODES[image.mode]} pixels; convert it to 8 or 16 bits per channel"
        )
    elif image.mode in ("P", "PA"):
        # Converting straight to RGB, Pillow warns about palettes with alpha.
        image = image.convert("RGBA")
    return np.asarray(image.convert(mode))
