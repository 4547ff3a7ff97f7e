"""A folder of crops: boxes.jsonl, crops, and overlays that show how they arose."""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.inspect.boxes import Box, Found
from vit_jax.prediction.file_names import FileNames

BOXES, CROPS, OVERLAYS = "boxes.jsonl", "crops", "overlays"
CHANNELS = (1, 3, 4)  # that a PNG file can have
_JPEGS = {".jpg", ".jpeg"}
_OVERLAY_SIDE = 1024  # pixels
_HEAT = (255, 80, 0)  # colour of the patches that the map singles out
_OPACITY = 0.6  # of the largest value


class CropFolder:
    """A new folder of boxes, crops and overlays; made by `open_folder`.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: pathlib.Path, lines: io.TextIOBase):
        """Sets the folder and the file of its records."""
        self.path, self._lines = path, lines
        self._names = FileNames()

    def add(
        self, record: dict[str, Any], pixels: UInt8[np.ndarray, "h w c"], found: Found
    ) -> None:
        """Writes the record of an image with a box, its crop and its overlay.

        Crops of JPEGs are JPEGs of high quality, all others PNGs without loss. Their
        names are those of the images, without what not every file system takes; of
        equal names, later ones get a number.
        """
        stem, suffix = self._names(record["image"])
        kind = ".jpg" if suffix in _JPEGS and pixels.shape[2] != 4 else ".png"
        crop, painted = f"{CROPS}/{stem}{kind}", f"{OVERLAYS}/{stem}.jpg"
        _save(picture_of(cut(pixels, found.box)), self.path / crop)
        _save(overlay(pixels, found), self.path / painted)
        self.write({**record, "crop": crop, "overlay": painted})

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record, such as that of an image that could not be read."""
        print(to_line(record), file=self._lines, flush=True)


@contextlib.contextmanager
def open_folder(path: pathlib.Path) -> Iterator[CropFolder]:
    """Makes a folder for crops; one that has boxes already is refused.

    Raises:
      UserError: see `problem_with`; or the folder cannot be written.
    """
    if problem := problem_with(path):
        raise UserError(problem)
    try:
        for folder in (CROPS, OVERLAYS):
            (path / folder).mkdir(parents=True, exist_ok=True)
        lines = (path / BOXES).open("x", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--out={path} cannot be written: {error.strerror or error}; pass another "
            "folder"
        ) from error
    with lines:
        yield CropFolder(path, lines)


def problem_with(path: pathlib.Path) -> str:
    """Explains why crops cannot be written to a folder; "" if they can."""
    # os.path does not raise for very long names, pathlib does.
    if os.path.lexists(path) and not os.path.isdir(path):
        return f"--out={path} is a file; pass a folder"
    if os.path.lexists(boxes := path / BOXES):
        return f"{boxes} has boxes already; pass another --out, or remove the folder"
    return ""


def to_line(record: dict[str, Any]) -> str:
    """Writes a record as a line of JSON, in ASCII: names may be no valid UTF-8."""
    return json.dumps(record, allow_nan=False)


def cut(pixels: UInt8[np.ndarray, "h w c"], box: Box) -> UInt8[np.ndarray, "y x c"]:
    """Returns the pixels of a box."""
    return pixels[box.top : box.bottom, box.left : box.right]


def picture_of(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Makes a picture of pixels with 1 (grey), 3 (RGB) or 4 channels (RGBA)."""
    pixels = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return Image.fromarray(pixels)


def overlay(
    pixels: UInt8[np.ndarray, "h w c"], found: Found, side: int = _OVERLAY_SIDE
) -> Image.Image:
    """Paints the map, patch by patch, and the box on an image.

    The larger a value, the more opaque; values below zero are not painted.

    Args:
      pixels: the image, of 1, 3 or 4 channels.
      found: its box and map.
      side: the longest side of the result, in pixels.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = picture_of(pixels[:, :, :3]).convert("RGB").resize(size)
    values = np.maximum(found.map, 0)
    opacity = values / max(values.max(), np.finfo(np.float64).tiny) * _OPACITY * 255
    heat = Image.fromarray(np.round(opacity).astype(np.uint8))
    heat = heat.resize(size, Image.Resampling.NEAREST)
    picture.paste(Image.new("RGB", size, _HEAT), mask=heat)
    left, top, right, bottom = (edge * scale for edge in found.box)
    corners = (left, top, max(right - 1, left), max(bottom - 1, top))
    draw = ImageDraw.Draw(picture)
    thickness = max(1, max(size) // 200)
    draw.rectangle(corners, outline=(0, 0, 0), width=2 * thickness)
    draw.rectangle(corners, outline=(255, 255, 255), width=thickness)
    return picture


def _save(picture: Image.Image, path: pathlib.Path) -> None:
    """Writes a picture completely or not at all."""
    options: dict[str, Any] = {"format": "PNG"}
    if path.suffix in _JPEGS:
        options = {"format": "JPEG", "quality": 95, "subsampling": 0}
    with atomic_write(path, sync=False) as temporary:
        picture.save(temporary, **options)
