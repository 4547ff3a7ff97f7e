"""Writes weights in our own format or another one, completely or not at all."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.formats.known import find_format, to_tensors
from vit_jax.weights.formats.single_file import as_single_file

logger = logging.getLogger(__name__)

# Written beside the weights, as JSON: {file name: content}.
_COMPANIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "timm": timm.companions,
    "huggingface": huggingface.companions,
}
# What a destination must be called; "" is a directory.
_SUFFIXES = {
    "vit_jax": (".safetensors",),
    "google": (".npz",),
    "big_vision": (".npz",),
    "timm": (".safetensors", ""),
    "huggingface": ("",),
}


def save_weights(
    description: Description,
    params: Mapping[str, Any],
    path: str | pathlib.Path,
    format: str = "vit_jax",
) -> pathlib.Path:
    """Writes a model; an old file is replaced, a directory must be new or empty.

    Args:
      description: what the parameters are of.
      params: nested dict of arrays.
      path: NAME.safetensors for "vit_jax"; NAME.npz for "google" and "big_vision"; a
        directory for "huggingface", and either for "timm".
      format: one of these.

    Returns:
      The path. What the format's files cannot say is logged.

    Raises:
      UserError: the format cannot express the model (says what), or the path cannot be
        written; then nothing has changed.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if format != "vit_jax":
        find_format(format)
    suffix = _suffix(path, format)
    if format == "vit_jax":
        arrays, metadata = as_single_file(description, params)
        companions, lost = {}, []
    else:
        architecture, arrays, lost = to_tensors(
            find_format(format),
            description.architecture,
            params,
            description.preprocessing,
        )
        make = _COMPANIONS.get(format, lambda *_: {})
        companions = make(
            architecture, description.preprocessing, description.class_names
        )
        # What PyTorch's libraries look for; a timm file alone carries its config.
        metadata = {"format": "pt"}
        if suffix and companions:
            metadata["config"] = json.dumps(companions["config.json"])
    try:
        if suffix:
            _write_file(path, lambda file: _WRITERS[suffix](file, arrays, metadata))
        else:
            _write_directory(path, arrays, metadata, companions)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written: {error}. Nothing was changed; free some space "
            "or choose another place"
        ) from error
    for sentence in lost:
        logger.warning("%s: %s", path.name, sentence)
    return path


def _suffix(path: pathlib.Path, format: str) -> str:
    """The kind of destination; UserError unless the format can be written to it."""
    choices = _SUFFIXES[format]
    files = [choice for choice in choices if choice]
    suffix = path.suffix if path.suffix in (".npz", ".safetensors") else ""
    if suffix in choices and not (suffix and path.is_dir()):
        if not suffix and path.exists():
            _check_empty(path)
        return suffix
    expected = " or ".join(
        [f"a file NAME{choice}" for choice in files] + ["a directory"] * ("" in choices)
    )
    raise UserError(f"{path}: the format {format!r} is written to {expected}")


def _check_empty(path: pathlib.Path):
    if not path.is_dir():
        raise UserError(f"{path} is a file, and a directory is to be written there")
    if any(path.iterdir()):
        raise UserError(
            f"{path} is not empty: remove it, or choose one that is not there yet"
        )


def _write_file(path: pathlib.Path, write: Callable[[pathlib.Path], None]):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_directory(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str],
    companions: Mapping[str, Any],
):
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        for name, content in companions.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
        _write_safetensors(temporary / "model.safetensors", arrays, metadata)
        for file in temporary.iterdir():
            _sync(file)
        # Onto an empty directory too.
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_npz(file: pathlib.Path, arrays: Mapping[str, np.ndarray], _: Any):
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _write_safetensors(
    file: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
):
    save_file(dict(arrays), str(file), metadata)


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}


def _sync(file: pathlib.Path):
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
