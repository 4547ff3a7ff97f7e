"""Decoding of image files to uint8 pixels, for every format and colour mode.

Ordinary JPEGs have a module of their own, which decodes them only as far as needed.
"""

from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image

from vit_jax.data.any_format import decode_any
from vit_jax.data.formats import DecodeError, UnsuitableImage
from vit_jax.data.jpeg import plain_jpeg
from vit_jax.errors import UserError

__all__ = [
    "DecodeError",
    "Deferred",
    "Opened",
    "UnsuitableImage",
    "decode",
    "open_image",
    "whole",
    "with_channels",
]


class Deferred(Protocol):
    """An image whose pixels are made when they are needed, such as a `PlainJpeg`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        ...

    def decode(self) -> np.ndarray:
        """Makes all pixels, uint8 of `shape`."""
        ...

    def __getitem__(self, box: tuple[slice, slice], /) -> np.ndarray:
        """Makes the pixels of one box, those of `decode()[box]`."""
        ...


Opened: TypeAlias = "np.ndarray | Deferred"


def decode(
    data: bytes, channels: int = 3, name: str = "", white_level: float = 0.0
) -> np.ndarray:
    """Decodes one image file.

    Grey becomes three equal channels; colour becomes luminance if one channel is
    requested. Alpha is dropped rather than blended, as in the published pipelines; deep
    values become 8 bits, see `depth`; the EXIF orientation is applied; an animation
    gives its first frame. Other numbers of channels are read from TIFFs of that many
    bands or pages. Ordinary JPEGs are decoded by libjpeg-turbo directly, in half the
    time and to the same pixels.

    Args:
      data: the file's bytes.
      channels: 1 (grey), 3 (RGB), 4 (RGBA), or the number of bands.
      name: the image's name in error messages.
      white_level: the value of white in images of more than 8 bits per channel whose
        file does not say it; 0 = the largest of 16 bits.

    Returns:
      uint8 [h, w, channels].

    Raises:
      UnsuitableImage: the file is intact, but cannot become that many channels, or its
        white is not known.
      DecodeError: the file is empty, truncated, corrupt, not an image, or so large
        when unpacked that Pillow's limit treats it as an attack.
    """
    return whole(open_image(data, channels, name, white_level=white_level))


def open_image(
    data: bytes,
    channels: int = 3,
    name: str = "",
    fast: bool = False,
    white_level: float = 0.0,
) -> Opened:
    """Opens an image file like `decode`, but defers decoding of an ordinary JPEG.

    `fast` (see `jpeg.PlainJpeg`) is for training, where augmentation changes the pixels
    more than the fast transform does.
    """
    if not data:
        raise DecodeError(f"{name or 'image'} is empty (0 bytes)")
    jpeg = plain_jpeg(data, channels, name, fast)
    return jpeg or decode_any(data, channels, name, white_level)


def whole(image: Opened) -> np.ndarray:
    """Returns all pixels of an image that `open_image` opened."""
    return image if isinstance(image, np.ndarray) else image.decode()


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
            + _scaling(pixels)
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


def _scaling(pixels: np.ndarray) -> str:
    """Says how pixels of another type become uint8; "" if that is not the problem."""
    kind = pixels.dtype.kind
    if pixels.dtype == np.uint8 or not pixels.size or kind in "cOUS":
        return ""
    if kind == "b":
        return ": multiply it by np.uint8(255)"
    if kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        return ": its values fit, so convert it with astype('uint8')"
    return (
        ": scale it so that black is 0 and white 255, round it, and convert it with "
        "astype('uint8')"
    )
