"""Pictures: maps as colours, maps over images, images side by side, as PNG or JPEG."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

Picture = UInt8[np.ndarray, "h w 3"]

COLOURS = "viridis"  # perceptually uniform, and readable without colour vision
_METHODS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}


def scaled(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Scales values to [0, 1]; equal values become 0, and what is not finite, too."""
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size or np.ptp(finite) == 0:
        return np.zeros(values.shape)
    return np.nan_to_num((values - finite.min()) / np.ptp(finite), posinf=0, neginf=0)


def coloured(
    values: Float[np.ndarray, "gh gw"], colours: str = COLOURS
) -> UInt8[np.ndarray, "gh gw 3"]:
    """Colours the values of a map, the smallest dark and the largest bright.

    Args:
      values: any finite values.
      colours: the name of a colour map of Matplotlib.
    """
    import matplotlib as mpl

    return mpl.colormaps[colours](scaled(values), bytes=True)[..., :3]


def enlarged(
    picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], method: str = "nearest"
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes a picture.

    Args:
      picture: the picture.
      size: (height, width) in pixels.
      method: "nearest", which shows each patch as a rectangle, or "bilinear".
    """
    (height, width), image = size, PIL.Image.fromarray(picture)
    return np.asarray(image.resize((width, height), _METHODS[method]))


def overlaid(
    image: Picture,
    values: Float[np.ndarray, "gh gw"],
    *,
    share: float = 0.55,
    method: str = "bilinear",
) -> Picture:
    """Lays a map of patches over an image.

    Args:
      image: the image.
      values: the map; it is scaled to the image's size.
      share: how much of the result is the map, between 0 and 1.
      method: see `enlarged`.
    """
    over = enlarged(coloured(values), image.shape[:2], method)
    return np.round((1 - share) * image + share * over).astype(np.uint8)


def with_box(
    image: Picture, box: Sequence[float], colour: tuple[int, int, int] = (255, 64, 32)
) -> Picture:
    """Draws the outline of a box (left, top, right, bottom), in pixels."""
    from PIL import ImageDraw

    drawn = PIL.Image.fromarray(image).copy()
    width = max(1, round(min(image.shape[:2]) / 100))
    left, top, right, bottom = box
    edges = left, top, max(left, right - 1), max(top, bottom - 1)
    ImageDraw.Draw(drawn).rectangle(edges, outline=colour, width=width)
    return np.asarray(drawn)


def side_by_side(
    pictures: Sequence[Picture], columns: int, gap: int = 4, colour: int = 255
) -> Picture:
    """Arranges pictures of one size in rows, with a gap between them.

    Args:
      pictures: at least one.
      columns: pictures in a row.
      gap: pixels between two pictures.
      colour: grey value of the gaps, and of places without a picture.
    """
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    h, w = pictures[0].shape[:2]
    size = rows * (h + gap) - gap, columns * (w + gap) - gap, 3
    whole = np.full(size, colour, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        whole[y : y + h, x : x + w] = picture
    return whole


def encoded(picture: Any, kind: str = "png", quality: int = 85) -> bytes:
    """Encodes a uint8 picture [h, w, 3] or [h, w] as the bytes of a file.

    Args:
      picture: the picture.
      kind: "png", or "jpeg" for photographs.
      quality: of a JPEG, up to 95.
    """
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(np.ascontiguousarray(picture))
    how = {"quality": quality} if kind == "jpeg" else {"optimize": True}
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def data_uri(picture: Any, kind: str = "png", quality: int = 85) -> str:
    """Encodes a picture as an address that contains it, for `<img src=…>`."""
    content = base64.b64encode(encoded(picture, kind, quality)).decode()
    return f"data:image/{kind};base64,{content}"
