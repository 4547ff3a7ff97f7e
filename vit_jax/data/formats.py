"""The image formats that are read, their file endings, and Pillow's plug-ins for them.

The contents of a file decide its format, not its ending. The endings only tell which
files of a folder are images.
"""

import contextlib
import functools
import io

from PIL import Image

from vit_jax.errors import UserError

# Format, by Pillow's name → endings in lower case. Pillow's other formats stay disabled
# because some of them start other programs (EPS does).
ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"),
        *(".pjpeg", ".pjp", ".mpo"),
    ),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc", ".jpf"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}
EXTENSIONS = tuple(ending for endings in ENDINGS.values() for ending in endings)
FORMATS = tuple(ENDINGS)

# The brands in the first box of an ISO media file (ISO/IEC 23008-12, annex B).
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_HEIF_BRANDS |= {b"mif1", b"msf1"}
_BIG_ENDIAN_BIGTIFF = b"MM\0+"
# Pillow loads its plugins on first use, which is not thread-safe.
Image.init()

_SHOWN = 16  # bytes of an unknown file: enough to see that it is a web page, say


class DecodeError(UserError):
    """An image that cannot be read; the message gives its name and the reason."""


class UnsuitableImage(DecodeError):
    """An intact image that this model, its transforms or the settings cannot use.

    Most often all images of the data set are like it, and a setting is the remedy.
    """


class UnknownFormat(ValueError):
    """A file in none of the formats, or in one that needs a plug-in, without name."""


def open_with_pillow(data: bytes) -> Image.Image:
    """Identifies an image file by its contents and reads its header.

    Raises:
      UnknownFormat: the file is in none of the formats, or in one that needs a plug-in
        that is not installed. Broken files raise other exceptions of Pillow's.
    """
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        raise UnknownFormat(
            "it is a BigTIFF with the most significant byte first, which Pillow cannot "
            "read; convert it to another TIFF"
        )
    heif = _is_heif(data)
    known = FORMATS if heif and _heif_plugin() else FORMATS[:-1]
    try:
        return Image.open(io.BytesIO(data), formats=known)
    except Image.UnidentifiedImageError:
        if heif and "HEIF" not in known:
            raise UnknownFormat(
                "it is an HEIF file, which needs a plug-in: pip install 'vit_jax[heif]'"
            ) from None
        raise UnknownFormat(
            f"its {len(data):,} bytes are in none of the formats {', '.join(FORMATS)}, "
            f"or damaged; they begin with {data[:_SHOWN]!r}"
        ) from None


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


@functools.cache
def _heif_plugin() -> bool:
    """Registers pillow-heif with Pillow; returns whether it is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()
        return True
    return False
