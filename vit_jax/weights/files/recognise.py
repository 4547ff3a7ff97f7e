"""Recognition of file types from their first bytes, for messages and readers."""

import json
import os
import pathlib
import struct
from collections.abc import Callable

from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import read_directory
from vit_jax.words import plain, quoted, shortened

# In bytes; ten times the header of the largest published model.
LONGEST_SAFETENSORS_HEADER = 2 << 20

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<error")


def recognise(path: pathlib.Path) -> str:
    """Describes a path in a phrase; never fails because of its content.

    An example of a phrase is "a NumPy archive (.npz) of 12 arrays".

    Args:
      path: an existing file or directory.
    """
    if path.is_dir():
        entries = sorted(os.listdir(path))
        if not entries:
            return "an empty directory"
        return f"a directory that holds {shortened(entries, plain, most=5)}"
    if not path.is_file():
        return "neither a file nor a directory"
    size = path.stat().st_size
    if size == 0:
        return "an empty file"
    with path.open("rb") as file:
        start = file.read(512)
    for matches, describe in _KINDS:
        if matches(start):
            return describe(path)
    for signature, words in _SIGNATURES.items():
        if start.startswith(signature):
            return words
    for suffix, words in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return words
    unknown = f"a file of {size:,} bytes in an unknown format"
    text = _text(start)
    return f"{unknown}, with the text {quoted(text)}" if text else unknown


def is_zip(start: bytes) -> bool:
    """Returns whether a file starts like a zip archive."""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_safetensors(start: bytes) -> bool:
    """Returns whether a file starts like a safetensors file."""
    # Eight bytes of header length, then a JSON object. The NULs rule out text files.
    return start[6:9] == b"\0\0{"


def is_pickle(start: bytes) -> bool:
    """Returns whether a file starts like a pickle of protocols 2 to 5."""
    return start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")


def is_json(start: bytes) -> bool:
    """Returns whether a file starts like a JSON object."""
    return start.lstrip().startswith(b"{")


def _is_onnx(start: bytes) -> bool:
    # The version of the format, then the name of the program that wrote it.
    is_message = start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x1a", b":")
    return is_message and (b"pytorch" in start[:32] or b"onnx" in start)


def _zip(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            names = [info.filename for info in read_directory(file)]
    except Unreadable:
        size = path.stat().st_size
        return f"a damaged archive of {size:,} bytes, such as an incomplete download"
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "a TorchScript model (torch.jit.save)"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch checkpoint"
    if "model.weights.h5" in names:
        return "a Keras file"
    if any(name.endswith("/models/model.json") for name in names):
        return "an exported PyTorch program (torch.export.save)"
    if inside := [name for name in names if name.endswith(_WEIGHTS)]:
        return f"a zip archive of {shortened(inside, plain)} (unpack it)"
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz) of {len(names)} arrays"
    return "a zip archive"


def _safetensors(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        # Real headers are small; a wrong length must not exhaust memory.
        header = file.read(min(length, LONGEST_SAFETENSORS_HEADER))
    try:
        names = json.loads(header).keys() - {"__metadata__"}
    except (ValueError, AttributeError, RecursionError):
        return "a damaged safetensors file"
    return f"a safetensors file of {len(names)} tensors"


def _text(start: bytes) -> str:
    """Returns the first line of a text; "" for any other content."""
    try:
        line = start.decode("utf-8", errors="strict").lstrip().partition("\n")[0]
    except UnicodeDecodeError:
        return ""
    return line.strip() if line.strip().isprintable() else ""


_WEIGHTS = (".safetensors", ".pth", ".bin", ".pt")
# First bytes of files that are not read → what they are.
_SIGNATURES = {
    b"GGUF": "a GGUF file (of llama.cpp), whose weights may be quantized",
    b"\x1f\x8b": "a gzip archive (unpack it)",
    b"BZh": "a bzip2 archive (unpack it)",
    b"\xfd7zXZ": "an xz archive (unpack it)",
    b"7z\xbc\xaf": "a 7z archive (unpack it)",
    b"Rar!": "a RAR archive (unpack it)",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive (unpack it)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "an image (PNG)",
    b"\xff\xd8\xff": "an image (JPEG)",
    b"GIF8": "an image (GIF)",
}
# Suffixes of files that their first bytes do not reveal → what they are.
_SUFFIXES = {
    ".onnx": "an ONNX model",
    ".msgpack": "weights of Flax in MessagePack",
    ".pb": "a TensorFlow model",
    ".tflite": "a TensorFlow Lite model",
    ".index": "the index of a TensorFlow checkpoint",
    ".data-00000-of-00001": "the data of a TensorFlow checkpoint",
    ".tar": "a tar archive (unpack it)",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".mlmodel": "a Core ML model",
}

# (test of the first bytes, description of the file); the first match wins.
_KINDS: list[tuple[Callable[[bytes], bool], Callable[[pathlib.Path], str]]] = [
    (
        lambda start: start.startswith(_LFS_POINTER),
        lambda _: (
            "a git-lfs pointer, not the file itself (fetch it with `git lfs pull`)"
        ),
    ),
    (
        lambda start: b"<net " in start and start.lstrip().startswith(b"<?xml"),
        lambda _: "an OpenVINO model",
    ),
    (
        _is_onnx,
        lambda _: "an ONNX model",
    ),
    (lambda start: start[4:8] == b"TFL3", lambda _: "a TensorFlow Lite model"),
    (
        lambda start: start.lstrip().lower().startswith(_MARKUP),
        lambda _: "an HTML or XML page, such as a server's error message",
    ),
    (is_zip, _zip),
    (is_safetensors, _safetensors),
    (lambda start: start.startswith(b"\x93NUMPY"), lambda _: "a NumPy array (.npy)"),
    (lambda start: start.startswith(b"\x89HDF"), lambda _: "an HDF5 (Keras) file"),
    (is_pickle, lambda _: "a pickle, such as an old PyTorch checkpoint"),
    (is_json, lambda _: "a JSON file"),
]
