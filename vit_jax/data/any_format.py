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
# Formats whose colours may have more bits than Pillow keeps.
_DEEP_FORMATS = ("PNG", "TIFF", "JPEG2000")
# Modes → the mode to convert to first. Converting palettes with alpha straight to RGB,
# Pillow warns; the others it does not convert to grey.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "La": "LA", "LAB": "RGB"}
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

    Of an image with several frames, it is the current one. Of 16-bit colours that have
    been loaded, Pillow has kept the upper 8 bits.

    Returns:
      uint8 [h, w, channels].

    Raises:
      UnsuitableImage: it cannot become that many channels, or its white is not known.
      DecodeError: its file is truncated or closed.
    """
    with _explained(name):
        if 0 in image.size:
            raise ValueError(f"it has {image.width} × {image.height} pixels")
        data = _unread(image)
        if data:
            found = read(data, channels, white_level)
        else:
            found = _loaded(image, white_level)
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
    if page and (page.misread or not page.is_picture(channels)):
        tiff.check_bands(page, channels)
        return _bands(page, data, channels, white_level)
    try:
        image = open_with_pillow(data)
    except UnknownFormat:
        if not page:
            raise
        return _bands(page, data, channels, white_level)
    if page:
        image.seek(page.index)
    image.load()
    if image.mode in _DEEP_MODES:
        return _samples(np.asarray(_upright(image)), page, data, white_level, True)
    if deep := _deep_colours(image, page, data, channels, white_level):
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


def _unread(image: Image.Image) -> bytes | None:
    """Returns the file of an image of which Pillow has read no more than the header.

    Its pixels may be deeper than Pillow's will be. None if it has been read, has
    several frames, or is in a format of which Pillow loses nothing.
    """
    file = getattr(image, "fp", None)
    if image.format not in _DEEP_FORMATS or not getattr(image, "tile", None):
        return None
    if file is None or file.closed or getattr(image, "n_frames", 1) > 1:
        return None
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return data


def _loaded(image: Image.Image, white_level: float) -> "Samples | Image.Image":
    """Takes the pixels that Pillow has; see `from_pillow`."""
    image.load()
    tags = getattr(image, "tag_v2", None)
    page = tiff.Page(0, dict(tags)) if tags else None
    if image.mode in _DEEP_MODES:
        pixels = np.asarray(_upright(image))
        return _samples(pixels, page, b"", white_level, True)
    if page and (page.misread or tiff.needs_all_bits(page, white_level)):
        raise depth.Unsuited(
            f"Pillow has not kept all of its {page.bits} bits; pass the path of its "
            "file, or its bytes"
        )
    return _upright(image)


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


def _bands(page: tiff.Page, data: bytes, channels: int, white_level: float) -> Samples:
    """Reads a page without Pillow."""
    tiff.check_colours(page)
    values = _without_alpha(tiff.read_bands(data, page), page.plain, channels)
    return _samples(values, page, data, white_level)


def _without_alpha(values: np.ndarray, plain: int, channels: int) -> np.ndarray:
    """Drops a band beside grey or colour that the model does not take.

    Its values may lie outside the range of the others.
    """
    one_more = values.ndim == 3 and values.shape[2] == plain + 1
    if not one_more or channels not in (1, 3):
        return values
    return values[:, :, 0] if plain == 1 else values[:, :, :plain]


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
    if page and page.signed and page.bits == 16:
        values = values.astype(np.int16)  # Pillow makes 32 bits of them
    white = None
    if page and values.dtype.itemsize > 1:
        white = depth.white_in_tags(page.tags, 8 * values.dtype.itemsize)
    elif values.dtype == np.uint16:
        white = depth.white_in_png(data, values)
        if 8 < depth.jpeg2000_bits(data) < 16:
            white = depth.FULL  # Pillow scales grey to 16 bits
    if white and values.max() > white:
        white = None  # the file contradicts itself
    if values.dtype != np.uint8:
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
    image: Image.Image,
    page: tiff.Page | None,
    data: bytes,
    channels: int,
    white_level: float,
) -> Samples | None:
    """Reads colours of more than 8 bits per channel; None if they have 8.

    Pillow keeps the upper 8 of 16 bits, which is right if white is the largest value.
    """
    if image.mode[:3] not in ("RGB", "LA", "CMY"):
        return None
    if bits := depth.jpeg2000_bits(data):
        if bits == 8:
            return None
        # Not by Pillow, whose rounding overflows: it makes white black.
        values = _without_alpha(_by_opencv(data), 3, channels)
        return Samples(values, 2.0**bits - 1 if bits < 16 else white_level or None)
    if page:
        deep, all_bits = page.bits == 16, tiff.needs_all_bits(page, white_level)
    else:
        deep = depth.has_sixteen_bits(data)
        all_bits = depth.has_significant_bits(data)
        all_bits = all_bits or white_level not in (0, depth.FULL)
    if not deep or (image.mode == "CMYK" and not all_bits):
        return None
    upper = Samples(np.asarray(_upright(image)).astype(np.uint16) << 8, None)
    if not all_bits:
        return upper
    if page:
        tiff.check_colours(page)
    if page and page.planes:
        found = _bands(page, data, channels, white_level)
    else:
        values = _by_opencv(data)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in _UPRIGHT:
            values = _UPRIGHT[orientation](values)
        values = _without_alpha(values, 3, channels)
        found = _samples(values, page, data, white_level, True)
    return upper if found.white in (None, depth.FULL) else found


def _by_opencv(data: bytes) -> np.ndarray:
    """Reads 16-bit colours, uint16 [h, w, 3 or 4], as they are stored."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ValueError("its 16-bit colours cannot be read")
    # OpenCV stores blue first.
    return values[:, :, [2, 1, 0, 3][: values.shape[2]]]


def _eight_bits(found: "Samples | Image.Image", channels: int) -> np.ndarray:
    """Converts to uint8 [h, w, channels]."""
    if isinstance(found, Samples):
        pixels = np.ascontiguousarray(depth.eight_bits(*found))
        if pixels.ndim == 3 and pixels.shape[2] == channels:
            return pixels
        found = Image.fromarray(pixels)
    elif found.mode in _BY_WAY_OF:
        found = found.convert(_BY_WAY_OF[found.mode])
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
