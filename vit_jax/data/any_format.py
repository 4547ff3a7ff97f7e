"""Decoding of any image file to uint8 pixels, by Pillow and by libraries for the rest.

OpenCV reads 16-bit colours where their upper 8 bits are not enough, and tifffile reads
TIFFs of many bands.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from vit_jax.data import depth, tiff
from vit_jax.data.formats import (
    DecodeError,
    UnknownFormat,
    UnsuitableImage,
    open_with_pillow,
)
from vit_jax.errors import UserError

_MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_MODES = (*_SIXTEEN_BIT_MODES, "I", "F")
# EXIF orientation → the transform that makes pixels upright (EXIF 2.3, §4.6.4).
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


_log = logging.getLogger(__name__)
_warned = False  # of an image that uses few of its 16 bits


class Samples(NamedTuple):
    """Upright pixels as a file stores them.

    Attributes:
      values: [h, w] or [h, w, c], of any type.
      white: the value of white; None = that of the type, if it has one.
    """

    values: np.ndarray
    white: float | None


def decode_any(
    data: bytes, channels: int, name: str, white_level: float = 0.0
) -> np.ndarray:
    """Decodes an image file to uint8 [h, w, channels]; see `decode.decode`."""
    with _explained(name):
        found = read(data, channels, white_level)
        pixels = _eight_bits(found, channels)
        _warn_if_narrow(found, name)
        return pixels


def from_pillow(
    image: Image.Image, channels: int, name: str, white_level: float = 0.0
) -> np.ndarray:
    """Converts an image of Pillow, in any mode, like the file that it was opened from.

    Of an image with several frames, it is the current one.

    Returns:
      uint8 [h, w, channels].

    Raises:
      UnsuitableImage: it cannot become that many channels, or its white is not known.
      DecodeError: its file is truncated or closed.
    """
    with _explained(name):
        if 0 in image.size:
            raise ValueError(f"it has {image.width} × {image.height} pixels")
        image.load()
        found: Samples | Image.Image = _upright(image)
        if image.mode in _DEEP_MODES:
            tags = getattr(image, "tag_v2", None)
            page = tiff.Page(0, dict(tags)) if tags else None
            found = _samples(np.asarray(found), page, b"", white_level, True)
        pixels = _eight_bits(found, channels)
        _warn_if_narrow(found, name)
        return pixels


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns whatever reading and converting raise into an error with the name."""
    try:
        yield
    except MemoryError as error:
        raise UserError(
            f"{name or 'image'}: there is not enough memory to decode it"
        ) from error
    except depth.Unsuited as error:
        raise UnsuitableImage(f"{name or 'image'} cannot be used: {error}") from None
    except Exception as error:  # Pillow raises a dozen types for broken files
        reason = str(error) or type(error).__name__
        raise DecodeError(f"{name or 'image'} cannot be decoded: {reason}") from error


def read(
    data: bytes, channels: int, white_level: float = 0.0
) -> "Samples | Image.Image":
    """Reads a file's pixels: an upright image of Pillow's, or samples that are deeper.

    Args:
      data: the file's bytes.
      channels: the number of channels that the model takes.
      white_level: the value of white in images of more than 8 bits per channel whose
        file does not say it; 0 = the largest of 16 bits.

    Raises:
      Unsuited: the image is intact, but cannot become that many channels.
      Other exceptions: it is broken.
    """
    pages = tiff.pages(data)
    tiff.check_pages(pages, channels)
    if len(pages) > 1:
        return _stack(pages, data, white_level)
    page = pages[0] if pages else None
    if page and not page.is_picture(channels):
        tiff.check_bands(page, channels)
        return _samples(tiff.read_bands(data, page), page, data, white_level)
    try:
        image = open_with_pillow(data)
    except UnknownFormat:
        if not page:
            raise
        return _samples(tiff.read_bands(data, page), page, data, white_level)
    if page:
        image.seek(page.index)
    image.load()
    if image.mode in _DEEP_MODES:
        return _samples(np.asarray(_upright(image)), page, data, white_level, True)
    if deep := _deep_colours(image, page, data, white_level):
        return deep
    return _upright(image)


def own_channels(data: bytes) -> int:
    """Returns the channels that lose nothing of an image: its bands or pages, or 3."""
    pages = tiff.pages(data)
    if len(pages) > 1:
        return len(pages)
    return pages[0].bands if pages and not pages[0].is_picture(0) else 3


def deep_values(data: bytes, white_level: float) -> tuple[np.ndarray, float] | None:
    """Returns the values of an image of more than 8 bits per channel, and its white.

    Returns None for another image, or if its white is not known. Broken files raise
    exceptions of Pillow's.
    """
    found = read(data, own_channels(data), white_level)
    if not isinstance(found, Samples) or found.values.dtype.itemsize == 1:
        return None
    default = depth.FULL if found.values.dtype == np.uint16 else None
    white = found.white or default
    return None if white is None else (found.values, white)


def _stack(pages: Sequence[tiff.Page], data: bytes, white_level: float) -> Samples:
    """Reads the pages of a TIFF as channels."""
    image, planes = open_with_pillow(data), []
    for page in pages:
        image.seek(page.index)
        image.load()
        if image.mode not in ("1", "L", *_DEEP_MODES):
            raise depth.Unsuited(
                f"it is a stack of {len(pages):,} pages that are not grey; only grey "
                "pages can become channels"
            )
        planes.append(np.asarray(_upright(image)))
    return _samples(np.dstack(planes), pages[0], data, white_level, True)


def _samples(
    values: np.ndarray,
    page: tiff.Page | None,
    data: bytes,
    white_level: float,
    by_pillow: bool = False,
) -> Samples:
    """Finds the white of deep values, and turns them upright unless Pillow has."""
    # In the machine's order of bytes; those of a TIFF may be in the other one.
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    white = None
    if page and values.dtype.itemsize > 1:
        white = depth.white_in_tags(page.tags, 8 * values.dtype.itemsize)
    elif values.dtype == np.uint16:
        white = depth.white_in_png(data, values) or depth.white_in_jpeg2000(data)
    if white and values.max() > white:
        white = None  # the file contradicts itself
    if values.dtype.itemsize > 1:
        white = white or white_level or None
    if page and page.inverted and not (by_pillow and values.dtype.itemsize == 1):
        # Pillow inverts only 8 bits.
        top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else None
        if (top := white or top) is not None:
            depth.check_range(values, top)
            values = (top - values).astype(values.dtype)
    if page and not by_pillow and page.orientation in _UPRIGHT:
        values = _UPRIGHT[page.orientation](values)
    return Samples(values, white)


def _deep_colours(
    image: Image.Image, page: tiff.Page | None, data: bytes, white_level: float
) -> Samples | None:
    """Reads colours of 16 bits per channel; None if they have 8.

    Pillow keeps their upper 8 bits, which is right if white is the largest value.
    """
    if page:
        bits = page.tags.get(258, (8,))
        says = depth.white_in_tags(page.tags, 16)
        deep = max(bits) == 16 and page.photometric == 2 and image.mode[:3] == "RGB"
    else:
        deep = image.mode[:3] == "RGB" or image.mode == "LA"
        deep = deep and depth.has_sixteen_bits(data)
        says = deep and depth.has_significant_bits(data)
    if not deep:
        return None
    upper = Samples(np.asarray(_upright(image)).astype(np.uint16) << 8, None)
    if not says and white_level in (0, depth.FULL):
        return upper
    buffer = np.frombuffer(data, np.uint8)
    values = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ValueError("its 16-bit colours cannot be read")
    # OpenCV stores blue first.
    values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _UPRIGHT:
        values = _UPRIGHT[orientation](values)
    found = _samples(values, page, data, white_level, True)
    return upper if found.white in (None, depth.FULL) else found


def _eight_bits(found: "Samples | Image.Image", channels: int) -> np.ndarray:
    """Converts to uint8 [h, w, channels]."""
    if isinstance(found, Samples):
        pixels = np.ascontiguousarray(depth.eight_bits(*found))
        if pixels.ndim == 3 and pixels.shape[2] == channels:
            return pixels
        found = Image.fromarray(pixels)
    elif found.mode in ("P", "PA"):
        # Converting straight to RGB, Pillow warns about palettes with alpha.
        found = found.convert("RGBA")
    if channels not in _MODE_OF_CHANNELS:
        if len(found.getbands()) != channels:
            raise depth.Unsuited(
                f"it has {len(found.getbands())} channels, and the model takes "
                f"{channels}. Set model.channels to the images' number, or convert the "
                "images"
            )
        return np.asarray(found)
    pixels = np.asarray(found.convert(_MODE_OF_CHANNELS[channels]))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _warn_if_narrow(found: "Samples | Image.Image", name: str) -> None:
    """Warns, once per process, of 16 bits of which only the lowest are in use."""
    global _warned
    if _warned or not isinstance(found, Samples) or found.white is not None:
        return
    most = int(found.values.max()) if found.values.dtype == np.uint16 else depth.FULL
    if 0 < most < depth.NARROW * depth.FULL:
        _warned = True
        _log.warning("%s %s", name or "image", depth.narrow(most))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an image with broken metadata is still readable
        return image
