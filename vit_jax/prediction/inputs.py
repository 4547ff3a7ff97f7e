"""The images that people hold: paths, folders, addresses, bytes, files, arrays."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vit_jax import web
from vit_jax.data.preprocessing import read_file
from vit_jax.errors import UserError
from vit_jax.prediction.folders import images_in

TAKEN = (
    "a path, a folder, an https address, the bytes of an image file, a binary file "
    "object, a PIL image, or a uint8 array [height, width, channels]; or a list of them"
)
MOST_BYTES = 100 * 2**20  # of an image at an address

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_OTHER_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://|(data):", re.IGNORECASE)
_PATH_OF_ADDRESS = re.compile(r"https?:/[^/]")
_LONGEST_NAME = 200  # characters of an unusable string in a message
_CHANNELS = (1, 3, 4)  # of image files


class Input(NamedTuple):
    """One image to predict.

    Attributes:
      name: its path or address, or "image 3".
      read: returns its file's bytes, its pixels or a PIL image; raises UserError if it
        cannot be read.
      now: whether it has to be prepared before the next one is taken from the caller,
        who may reuse or close it.
    """

    name: str
    read: Callable[[], Any]
    now: bool = False


def inputs(images: Any, channels: int) -> Iterator[Input]:
    """Lists images one by one; whatever cannot be one fails when it is read.

    Args:
      images: an image or several, see `TAKEN`. A uint8 array [b, h, w, c] is a batch,
        and a folder stands for all the images in it. An iterator is consumed no faster
        than the result.
      channels: the number of channels that the model takes.

    Raises:
      UserError: `images` is neither an image nor a list of them.
    """
    if _is_one(images):
        return _numbered([images], channels, lasting=True)
    if _is_array(images):
        rows = _rows(images)
        if rows is not None:
            return _numbered(rows, channels, lasting=True)
        return _numbered([images], channels, lasting=True)
    if isinstance(images, Sequence):
        return _numbered(images, channels, lasting=True)
    # Not every iterable: sets have no order, data frames iterate over their columns,
    # and a loader of batches over tuples.
    if isinstance(images, Iterator) or type(images).__name__ == "dict_values":
        return _numbered(images, channels, lasting=False)
    raise UserError(_unsuitable("images", images))


def is_address(text: str) -> bool:
    """Returns whether an image is to be downloaded."""
    return bool(_ADDRESS.match(text))


def _is_one(images: Any) -> bool:
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(images, single) or hasattr(images, "read")


def _is_array(images: Any) -> bool:
    # A data frame converts to an array too.
    return hasattr(images, "__array__") and not hasattr(images, "columns")


def _rows(images: Any) -> Iterable[Any] | None:
    """Returns the elements of an array of several images; None if it is one."""
    array = _as_numpy(images)
    if isinstance(array, str):
        return None
    if array.ndim == 1 and array.dtype.kind in "OUT":  # of paths, for example
        return array.tolist()
    return array if _is_batch(array) else None


def _numbered(held: Iterable[Any], channels: int, lasting: bool) -> Iterator[Input]:
    """Lists the images of each element; `lasting` ones stay as they are."""
    number = 0
    for element in held:
        for found in _images_of(element, number, channels, lasting):
            number += 1
            yield found


def _images_of(
    element: Any, number: int, channels: int, lasting: bool
) -> Iterable[Input]:
    name = f"image {number}"
    if isinstance(element, Input):
        return [element]
    if isinstance(element, str | os.PathLike):
        return _at(os.fsdecode(element))
    if isinstance(element, bytes | bytearray | memoryview):
        content = bytes(element)
        return [Input(name, lambda: content)]
    if isinstance(element, Image.Image):
        return [Input(name, lambda: element, now=True)]
    if hasattr(element, "read"):
        return [_of_file(element, name)]
    if not _is_array(element):
        return [_failing(name, _unsuitable(name, element))]
    array = _as_numpy(element)
    if isinstance(array, str):
        return [_failing(name, f"{name} {array}")]
    if _is_batch(array):
        rows = enumerate(array, number)
        return (_of_array(row, f"image {n}", channels, lasting) for n, row in rows)
    return [_of_array(array, name, channels, lasting)]


def _at(path: str) -> Iterable[Input]:
    """Lists the images at a path or an address."""
    if is_address(path):
        return [Input(path, partial(_download, path))]
    path = os.path.expanduser(path)
    # os.path does not raise for very long names, pathlib does.
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.lexists(path) and _no_path(path):
        return [_failing(_shortened(path), nothing_at(path))]
    return [Input(path, partial(read_file, path))]


def _in_folder(path: str) -> Iterator[Input]:
    empty = True
    for found in images_in(path):
        empty = False
        if isinstance(found, str):
            yield Input(found, partial(read_file, found))
        else:
            folder = os.fsdecode(found.filename or path)
            reason = found.strerror or found
            yield _failing(folder, f"{folder} cannot be listed: {reason}")
    if empty:
        yield _failing(path, f"{path}: the folder contains no images")


def nothing_at(text: str) -> str:
    """Explains in one line why there is no image at a path."""
    return f"{_shortened(text)}: {_no_path(text) or _system_says(text)}"


def _system_says(path: str) -> str:
    """Explains why a path leads nowhere, such as into a folder that is locked."""
    try:
        os.stat(os.path.expanduser(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        return str(error.strerror or error)
    return "no such file or folder"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _no_path(text: str) -> str:
    """Explains why a string that is no file cannot be one; "" if it could be."""
    if not text:
        return "an empty text is not a path"
    if found := _OTHER_ADDRESS.match(text):
        return (
            f"{found[1] or found[2]}: addresses are not read; pass a path, or an https "
            "address"
        )
    if _PATH_OF_ADDRESS.match(text):
        return "a path cannot hold an address; pass it as a string"
    if "\0" in text or len(text) > 4096:
        return "neither a path nor an address; pass the content of a file as bytes"
    if any(sign in text for sign in "*?["):
        return (
            "no such file, and patterns are not expanded here; in Python pass "
            "glob.glob(…), in a shell leave out the quotes"
        )
    return ""


def _download(url: str) -> bytes:
    content = web.fetch(url, MOST_BYTES)
    if content.lstrip()[:1] == b"<":
        raise UserError(f"{web.shown(url)}: the server sent a web page, not an image")
    return content


def _of_file(file: Any, name: str) -> Input:
    """Reads a file object, which the caller may close afterwards."""
    title = getattr(file, "name", None)
    name = title if isinstance(title, str) and title else name
    if isinstance(file, io.TextIOBase):
        return _failing(name, f'{name} is open as text; open it with mode "rb"')
    try:
        # From its beginning, as Pillow reads it: one just written is at its end.
        if getattr(file, "seekable", bool)():
            file.seek(0)
        content = file.read()
    except TypeError:  # a method of the same name, such as that of an archive
        return _failing(name, _unsuitable(name, file))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return _failing(name, f"{name} cannot be read: {reason}")
    if not isinstance(content, bytes | bytearray | memoryview):
        return _failing(name, _unsuitable(name, file))
    return Input(name, lambda: bytes(content))


def _of_array(array: np.ndarray, name: str, channels: int, lasting: bool) -> Input:
    first, *_, last = array.shape if array.ndim == 3 else (0, 0)
    if first in (channels, *_CHANNELS) and last not in (channels, *_CHANNELS):
        return _failing(
            name,
            f"{name} has shape {array.shape}, which looks like [channels, height, "
            "width]; expected [height, width, channels]: transpose it with (1, 2, 0)",
        )
    return Input(name, lambda: array, now=not lasting)


def _is_batch(array: np.ndarray) -> bool:
    return array.ndim == 4 and array.dtype == np.uint8


def _as_numpy(array: Any) -> np.ndarray | str:
    """Converts an array of any library; returns the reason if that fails."""
    try:
        return np.asarray(array)
    except Exception as error:  # such as a tensor on another device
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"cannot be converted to a NumPy array: {reason}"


def _unsuitable(name: str, found: Any) -> str:
    kind = type(found).__name__
    hint = ""
    if isinstance(found, list | tuple):
        hint = "; nested lists are not taken, pass one flat list"
    elif isinstance(found, set | frozenset):
        hint = "; a set has no order, pass a list"
    elif hasattr(found, "columns"):
        hint = '; pass its column of paths, as in table["path"]'
    elif isinstance(found, dict):
        hint = "; pass its values"
    return f"{name}: found {kind}, expected {TAKEN}{hint}"


def _failing(name: str, message: str) -> Input:
    def read() -> Any:
        raise UserError(message)

    return Input(name, read)
