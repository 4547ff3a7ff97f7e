"""TIFFs that hold more than one picture: many bands, or a stack of pages.

They are read as channels if the model takes that many, and otherwise refused by what
they are. Pillow reads grey, colour and single pages, and tifffile the rest.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vit_jax.data.depth import FULL, Unsuited, white_in_tags
from vit_jax.words import times

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_MOST_PAGES = 100_000
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations
# Photometric interpretations that always have the same bands, which Pillow knows.
_PILLOWS = (3, 5, 6, 8, 9)
_OTHER_COLOURS = {
    3: "indices of a palette",
    5: "inks (CMYK)",
    6: "colours as YCbCr",
    8: "colours as Lab",
    9: "colours as Lab",
    10: "colours as Lab",
    32803: "the mosaic of a camera's sensor",
    32844: "logarithms of brightness",
    32845: "logarithms of brightness",
}
_SIGNED = 2  # sample format
_BAND_AFTER_BAND = 2  # planar configuration


@dataclasses.dataclass(frozen=True)
class Page:
    """One picture of a TIFF, as its directory describes it.

    Attributes:
      index: its number in the file.
      tags: number → value.
    """

    index: int
    tags: Mapping[int, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Returns (height, width)."""
        return int(self.tags.get(257, 0)), int(self.tags.get(256, 0))

    @property
    def bands(self) -> int:
        return int(self.tags.get(277, 1))

    @property
    def bits(self) -> int:
        """Returns the bits of a value, the most of any band."""
        return max(map(int, _as_tuple(self.tags.get(258, 1))))

    @property
    def signed(self) -> bool:
        """Whether the values are integers with a sign."""
        return max(_as_tuple(self.tags.get(339, 1))) == _SIGNED

    @property
    def photometric(self) -> int:
        return int(self.tags.get(262, _BLACK_IS_ZERO))

    @property
    def inverted(self) -> bool:
        """Whether zero is white."""
        return self.photometric == _WHITE_IS_ZERO

    @property
    def orientation(self) -> int:
        return int(self.tags.get(274, 1))

    @property
    def plain(self) -> int:
        """Returns the bands of a picture without alpha: one if grey, three if not."""
        return 3 if self.photometric == _RGB else 1

    @property
    def misread(self) -> bool:
        """Whether Pillow gives wrong pixels without an error.

        It reads uncompressed planes of 16 bits as if they had 8, and takes signed
        values of 8 bits for unsigned ones.
        """
        planes = self.planes and self.bits > 8 and self.tags.get(259, 1) == 1
        wrong = planes or (self.signed and self.bits == 8)
        return wrong and self.photometric not in _PILLOWS

    @property
    def planes(self) -> bool:
        """Whether it has several bands, which are stored one after the other."""
        return self.bands > 1 and self.tags.get(284) == _BAND_AFTER_BAND

    @property
    def alone(self) -> bool:
        """Whether it is a picture, not a smaller copy or a mask of another one."""
        return not int(self.tags.get(254, 0)) & (_REDUCED | _MASK)

    def is_picture(self, channels: int) -> bool:
        """Returns whether Pillow's conversion to `channels` loses no band of its own.

        An alpha channel may be lost, and so may one band beside grey or colour whose
        meaning the file does not say, unless the model takes that many.
        """
        if self.photometric in _PILLOWS:
            return True
        if self.bands == self.plain:
            return True
        alpha = set(_as_tuple(self.tags.get(338, ()))) & {1, 2}
        return self.bands == self.plain + 1 and (bool(alpha) or self.bands != channels)


def pages(data: bytes) -> list[Page]:
    """Reads the directories of a TIFF, without smaller copies and masks.

    Returns:
      The pages up to the first broken directory; none if it is not a TIFF.
    """
    if not data.startswith(_MAGIC):
        return []
    header = data[: 16 if data[2:3] == b"+" else 8]
    file, found, seen = io.BytesIO(data), [], set()
    try:
        offset = ImageFileDirectory_v2(header).next
        while offset and offset not in seen and len(found) < _MOST_PAGES:
            seen.add(offset)
            directory = ImageFileDirectory_v2(header)
            file.seek(offset)
            directory.load(file)
            page = Page(len(found), directory)
            _ = page.size, page.bands, page.photometric, page.alone  # readable
            found.append(page)
            offset = directory.next
    except Exception:  # Pillow raises a dozen types for broken files
        pass
    return [page for page in found if page.alone] or found[:1]


def check_pages(found: Sequence[Page], channels: int) -> None:
    """Raises Unsuited unless the file is one picture, or one per channel."""
    if len(found) < 2:
        return
    sizes = {page.size for page in found}
    single = all(page.bands == 1 for page in found)
    if len(found) == channels and single and len(sizes) == 1:
        return
    what = f"a stack of {len(found):,} pages"
    if len(sizes) > 1:
        what += " of different sizes"
    elif not single:
        what += f" of {found[0].bands} bands each"
    remedy = "Split it into one file per page"
    if single and len(sizes) == 1:
        remedy += f", or set model.channels={len(found)} to read them as channels"
    raise Unsuited(f"it is {what}, and the model takes {channels} channel(s). {remedy}")


def check_bands(page: Page, channels: int) -> None:
    """Raises Unsuited unless the page is a picture, or has one band per channel."""
    if page.bands != channels and not page.is_picture(channels):
        raise Unsuited(
            f"it is a TIFF of {page.bands} bands, and the model takes {channels} "
            f"channel(s). Set model.channels={page.bands} to read all of them, or "
            "convert the images"
        )


def check_colours(page: Page) -> None:
    """Raises Unsuited if bands are not brightness, and only Pillow could convert them.

    Pillow converts at most 8 bits of them.
    """
    if what := _OTHER_COLOURS.get(page.photometric):
        raise Unsuited(
            f"its {page.bits} bits are {what}, which cannot be converted at this "
            "depth; convert it to RGB or grey"
        )


def needs_all_bits(page: Page, white_level: float) -> bool:
    """Returns whether the upper 8 of 16 bits, which Pillow keeps, are not enough."""
    white = white_in_tags(page.tags, 16) or white_level or FULL
    return page.bits == 16 and white != FULL


def read_bands(data: bytes, page: Page) -> np.ndarray:
    """Reads all bands of a page that Pillow cannot read, or not completely.

    Returns:
      Pixels of any type, [h, w] or [h, w, bands].

    Raises:
      Unsuited: tifffile is not installed. Broken files raise other exceptions of
        tifffile's.
    """
    if page.size[0] * page.size[1] > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise ValueError(f"{times(page.size)} pixels are more than Pillow's limit")
    try:
        import tifffile  # type: ignore[import-not-found]
    except ImportError:
        raise Unsuited(
            f"it is a TIFF of {page.bands} band(s) of {page.bits} bits, which Pillow "
            "cannot read completely. tifffile can: pip install 'vit_jax[tiff]'"
        ) from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        stored = file.pages[page.index]
        values = stored.asarray(maxworkers=1)
        if getattr(stored, "axes", "").startswith("S"):  # band after band
            values = np.moveaxis(values, 0, -1)
    if values.shape[:2] != page.size or values.ndim > 3:
        raise ValueError(f"its pixels have the unexpected shape {values.shape}")
    return values


def _as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)
