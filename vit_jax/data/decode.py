"""Encoded image files to uint8 pixels, whatever way they were written."""

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from vit_jax.errors import UserError

# What may be inside a file, whatever its name ends in. Other formats that Pillow
# knows stay closed: some of them start other programs. (JPEG includes MPO.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
# Pillow loads its plugins at the first use, which is not safe from several threads.
Image.init()

_JPEG = b"\xff\xd8\xff"
# Channels asked for → what libjpeg-turbo calls them, and what it makes them of. The
# luminance of a colour image is Pillow's to compute: it takes it of the colours.
_JPEG_COLORS = {1: ("GRAY", ("Gray",)), 3: ("RGB", ("Gray", "YCbCr", "RGB"))}
_EXIF_OR_XMP, _SCAN = 0xE1, 0xDA  # markers of segments: APP1, SOS
_MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = {"I": "32-bit integer", "F": "floating-point"}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class DecodeError(UserError):
    """An image that cannot be read; the message names it and the reason."""


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
    if channels not in _MODE_OF_CHANNELS:
        raise UserError(
            f"image files hold 1, 3 or 4 channels, {channels} are asked for. "
            "Pass arrays for other numbers of channels."
        )
    if not data:
        raise DecodeError(f"{name or 'image'} is empty (0 bytes)")
    if (pixels := _plain_jpeg(data, channels)) is not None:
        return pixels
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


def _plain_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """The pixels of an upright, undamaged JPEG in grey or colour; None of all else.

    What is refused here is Pillow's to judge, so that there is one judgement.
    """
    if not data.startswith(_JPEG) or channels not in _JPEG_COLORS:
        return None
    wanted, known = _JPEG_COLORS[channels]
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        too_large = int(height) * int(width) > (Image.MAX_IMAGE_PIXELS or 0)
        if colorspace not in known or too_large or _turned(data):
            return None
        return simplejpeg.decode_jpeg(data, wanted)
    except ValueError:
        return None


def _turned(data: bytes) -> bool:
    """Whether the file says that it is to be turned or mirrored."""
    # Segments up to the scan: marker, length, content (ITU T.81, B.1.1.4).
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == _SCAN:
            return False
        if data[position + 1] == _EXIF_OR_XMP:
            return _orientation(data) != 1
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + max(length, 2)
    return False


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
