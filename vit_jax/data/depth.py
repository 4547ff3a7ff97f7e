"""Scaling of deep pixels to 8 bits: which value is white, and what lies outside.

White comes from the file where it says so, else from `white_level`, else it is the
largest value of 16 bits; floating-point numbers and wider integers have no default.
Values outside 0 … white are refused rather than clipped, because clipping could make
two different images equal.
"""

import functools
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

FULL = 2**16 - 1  # white of 16 bits if neither the file nor the user says otherwise
_TAG_DESCRIPTION, _TAG_WHITE_LEVEL = 270, 50717
# Both are statistics of one image in some files, so only a number that states a depth
# is taken for white.
_TAGS_MAXIMUM = (341, 281)
_OME_BITS = re.compile(r'SignificantBits="(\d+)"')
_JP2, _J2K = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_PNG = b"\x89PNG\r\n\x1a\n"

# A largest value below this share of white is suspicious: an eighth leaves 32 of 256
# grey levels. Of several deep images together it is a quarter, for sensors of 14 bits.
NARROW, NARROW_TOGETHER = 1 / 8, 1 / 4


class Unsuited(ValueError):
    """An intact image that cannot be used; the message does not name it."""


def eight_bits(values: np.ndarray, white: float | None) -> np.ndarray:
    """Scales pixels to uint8, so that `white` becomes 255.

    Args:
      values: any shape; booleans, integers or real numbers.
      white: the value of white; None = that of the type, if it has one.

    Raises:
      Unsuited: white is not known, or a value lies outside 0 … white by so much that it
        would be rounded to less than 0 or more than 255.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype == np.uint16:
        if white in (None, FULL):
            # The upper half, like Pillow for colours; not rounded.
            return (values >> 8).astype(np.uint8)
        check_range(values, white)
        return _table(white)[values]
    if white is None:
        raise Unsuited(_without_white(values))
    if not np.isfinite(values).all():
        raise Unsuited("it has pixels that are not finite numbers")
    check_range(values, white)
    return np.rint(values * (255 / white)).astype(np.uint8)


def white_in_tags(tags: Mapping[int, Any], bits: int) -> float | None:
    """Reads the value of white from the tags of a TIFF; None if they do not say it.

    Args:
      tags: number of the tag → value.
      bits: size of a value after reading; fewer bits in the file set the white.
    """
    stored = _number(tags.get(258))
    if stored is not None and stored < bits and _number(tags.get(339, 1)) == 1:
        return 2.0**stored - 1
    if (white := _number(tags.get(_TAG_WHITE_LEVEL))) and white > 0:
        return float(white)
    if found := _OME_BITS.search(str(tags.get(_TAG_DESCRIPTION, ""))):
        significant = int(found[1])
        if 0 < significant < bits:
            return 2.0**significant - 1
    for tag in _TAGS_MAXIMUM:
        most = _number(tags.get(tag))
        if most == 1 and _number(tags.get(339, 1)) == 3:
            return 1.0
        if most and most >= 255 and np.log2(most + 1).is_integer():
            return float(most)
    return None


def white_in_png(data: bytes, values: np.ndarray) -> float | None:
    """Reads the value of white of a PNG with 16 bits from its chunk sBIT.

    The standard has writers scale pixels to the whole range, whatever the number of
    significant bits; then white is `FULL`. Writers that store them unscaled are
    recognised by low bits that no scaled pixel has.
    """
    for kind, body in _png_chunks(data):
        if kind == b"sBIT" and body and 8 <= max(body) < 16:
            bits = max(body)
            low = values & ((1 << (16 - bits)) - 1)
            if values.max() < 1 << bits and low.any():
                return 2.0**bits - 1
    return None


def jpeg2000_bits(data: bytes) -> int:
    """Returns the bits of the first channel of a JPEG 2000; 0 of another file."""
    if not data.startswith((_JP2, _J2K)):
        return 0
    # The marker SIZ follows the start of the codestream (ITU T.800, A.5.1).
    at = data.find(_J2K) + len(_J2K) + 38
    return (data[at] & 0x7F) + 1 if at < len(data) else 0


def has_sixteen_bits(data: bytes) -> bool:
    """Returns whether a file is a PNG with 16 bits per channel."""
    return data.startswith(_PNG) and data[24:25] == b"\x10"


def has_significant_bits(data: bytes) -> bool:
    """Returns whether a PNG has the chunk sBIT."""
    return any(kind == b"sBIT" for kind, _ in _png_chunks(data))


def narrow(most: float, white: float = FULL) -> str:
    """Says that the largest value is a small share of white, and what to do."""
    levels = int(most * 256 / (white + 1)) + 1
    bits = int(most).bit_length()
    return (
        f"has no value above {most:g}, where white is {white:g}: {levels} of 256 grey "
        f"levels remain. If another value is white, set data.white_level, for {bits} "
        f"bits to {2**bits - 1}"
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (type, content) of the chunks of a PNG before its pixels."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


@functools.lru_cache(maxsize=8)
def _table(white: float) -> np.ndarray:
    """Returns the 8-bit value of every 16-bit one; those above white are clipped."""
    scaled = np.rint(np.arange(FULL + 1) * (255 / white))
    return np.minimum(scaled, 255).astype(np.uint8)


def check_range(values: np.ndarray, white: float) -> None:
    """Raises Unsuited if a value would become less than 0 or more than 255."""
    least, most = values.min().item(), values.max().item()
    if round(most * 255 / white) > 255:
        raise Unsuited(
            f"it has the value {most:g}, above {white:g}, which is white. Set "
            "data.white_level to the largest value that the images can have"
        )
    if round(least * 255 / white) < 0:
        raise Unsuited(
            f"it has the value {least:g}, but black is 0. Convert the images so that "
            "no value is negative"
        )


def _without_white(values: np.ndarray) -> str:
    """Explains that values of this type have no default for white."""
    kind, least = _described(values.dtype), values.min()
    if least < 0:
        return (
            f"{kind} pixels down to {least:g}, but black is 0; convert it to 8 or 16 "
            "bits per channel"
        )
    return (
        f"{kind} pixels; convert it to 8 or 16 bits per channel, or set "
        "data.white_level to the value that is white"
    )


def _described(dtype: np.dtype) -> str:
    bits = dtype.itemsize * 8
    if dtype.kind == "f":
        return "floating-point"
    if dtype.kind == "c":
        return "complex"
    return f"{bits}-bit integer" if bits > 16 else f"signed {bits}-bit integer"


def _number(value: Any) -> float | None:
    """Returns the largest of a tag's numbers, of which there is one per band."""
    try:
        return max(value) if isinstance(value, tuple | list) else value + 0
    except (TypeError, ValueError):
        return None
