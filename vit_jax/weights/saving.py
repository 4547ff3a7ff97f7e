"""Writing of weights in our own or a foreign format, completely or not at all."""

import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from vit_jax.archives.npz import write_npz
from vit_jax.checkpoints.compare import compare_trees
from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.trees import leaves_by_path
from vit_jax.weights.adapter_directories import NO_OPTIONS, Peft, directory_content
from vit_jax.weights.files.directories import ADAPTER_FILES
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.formats.known import OWN, find_format, to_tensors
from vit_jax.weights.formats.single_file import as_single_file
from vit_jax.weights.reloading import lost_about_outputs
from vit_jax.words import either, quoted, shortened

logger = logging.getLogger(__name__)

# Format → the JSON files written beside the weights, as {file name: content}.
_COMPANIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "timm": timm.companions,
    "huggingface": huggingface.companions,
}
# Format → suffixes that a destination may have; "" is a directory.
_SUFFIXES = {
    "vit_jax": (".safetensors",),
    "google": (".npz",),
    "big_vision": (".npz",),
    "timm": (".safetensors", ""),
    "huggingface": ("",),
    "mae": (".safetensors",),
    "torchvision": (".safetensors",),
    "mmpretrain": (".safetensors",),
    "peft": ("",),
}
# Endings of files, which a directory with weights would not have by intention.
_FILE_ENDING = re.compile(
    r"\.(npz|npy|safetensors|pth|pt|th|bin|ckpt|tar|gz|zip|pkl|pickle|h5|hdf5|keras"
    r"|msgpack|flax|onnx|pb|tflite|gguf|json)",
    re.IGNORECASE,
)


def save_weights(
    description: Description,
    params: Mapping[str, Any],
    path: str | pathlib.Path,
    format: str = "vit_jax",
    peft: Peft = NO_OPTIONS,
) -> pathlib.Path:
    """Writes a model; replaces an old file, but a directory must be new or empty.

    Logs what the format's files do not record.

    Args:
      description: architecture, preprocessing and class names of the model.
      params: nested dict of arrays.
      path: NAME.safetensors for "vit_jax", "mae", "torchvision" and "mmpretrain";
        NAME.npz for "google" and "big_vision"; a directory for "huggingface" and
        "peft"; NAME.safetensors or a directory for "timm".
      format: one of these names.
      peft: options of the format "peft", which holds the adapter alone.

    Returns:
      The absolute path.

    Raises:
      UserError: the format does not exist or cannot express the model (names the
        reasons); the parameters do not fit the architecture or are not finite; or the
        path cannot be written. Nothing has changed then.
    """
    if str(format) not in OWN:
        find_format(str(format))
    path = _local(path)
    suffix = _suffix(path, format)
    _check_params(description, params)
    if format == "vit_jax":
        arrays, metadata = as_single_file(description, params)
        companions, lost = {}, []
    elif format == "peft":
        arrays, metadata, companions, lost = directory_content(
            description, params, peft
        )
    else:
        architecture, arrays, lost = to_tensors(
            find_format(format),
            description.architecture,
            params,
            description.preprocessing,
            description.decoder,
        )
        make = _COMPANIONS.get(format, lambda *_: {})
        companions = make(
            architecture,
            description.preprocessing,
            description.output_names,
            description.outputs,
        )
        table = find_format(format).decoder
        if table is not None and description.decoder is not None:
            companions = table.companions(companions, description.decoder)
        lost += lost_about_outputs(
            find_format(format), description, architecture, arrays, companions
        )
        # PyTorch's libraries look for this key. A single timm file embeds its config.
        metadata = {"format": "pt"}
        if suffix and companions:
            metadata["config"] = json.dumps(companions["config.json"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            if suffix:
                _WRITERS[suffix](temporary, arrays, metadata)
            else:
                name = ADAPTER_FILES[0] if format == "peft" else "model.safetensors"
                _write_directory(temporary, name, arrays, metadata, companions)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written: {error}. Nothing was changed; free some space "
            "or choose another path"
        ) from error
    for sentence in lost:
        logger.warning("%s: %s", path.name, sentence)
    return path


def _local(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the absolute path; raises UserError for an address.

    As a path, an address would become a local directory.
    """
    # One slash is enough: pathlib reduces two to one.
    if re.search(r"^[\w+.-]+:/|://", os.fspath(path)):
        raise UserError(
            f"{path} is an address, expected a path on this machine: save the weights "
            "to a local path, then copy them"
        )
    return pathlib.Path(path).expanduser().absolute()


def _check_params(description: Description, params: Mapping[str, Any]) -> None:
    """Raises UserError if a reader would reject the parameters."""
    arrays = jax.tree.map(np.asarray, params)
    problems = compare_trees(description.param_shapes, arrays).splitlines()
    odd = [
        path for path, array in leaves_by_path(arrays).items() if not _is_finite(array)
    ]
    if odd:
        problems.append(
            f"{len(odd)} with values that are not finite: {shortened(odd, quoted)}"
        )
    if problems:
        raise UserError(
            "the parameters cannot be saved: some are missing, unexpected, have the "
            "wrong shape, or are not finite:\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + "Save parameters that were trained with this architecture; if the "
            "training diverged, from a step before that."
        )


def _is_finite(array: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(array).all())
    except TypeError:  # not numbers
        return False


def _suffix(path: pathlib.Path, format: str) -> str:
    """Returns the destination's suffix; raises UserError if it is not the format's."""
    choices = _SUFFIXES[format]
    suffix = path.suffix if _FILE_ENDING.fullmatch(path.suffix) else ""
    if path.is_dir() and suffix not in _WRITERS:
        suffix = ""
    if suffix in choices and not (suffix and path.is_dir()):
        if not suffix and path.exists():
            _check_empty(path)
        return suffix
    if suffix in choices:
        raise UserError(
            f"{path} is a directory, expected a file: remove it, or choose another path"
        )
    expected = [f"a file NAME{choice}" for choice in choices if choice]
    names = [f"{path.stem if suffix else path.name}{choice}" for choice in choices]
    if "" in choices:
        expected.append("a directory")
    raise UserError(
        f"{path}: the format {format!r} is written to {' or '.join(expected)}"
        f"{f', not to {suffix}' if suffix else ''}; choose a name such as "
        f"{either(names)}"
    )


def _check_empty(path: pathlib.Path):
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, expected a directory: remove it, or choose another path"
        )
    if any(path.iterdir()):
        raise UserError(
            f"{path} is not empty: remove it, or choose a directory that does not "
            "exist yet"
        )


def _write_directory(
    folder: pathlib.Path,
    weights: str,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str],
    companions: Mapping[str, Any],
):
    folder.mkdir()
    for name, content in companions.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    _write_safetensors(folder / weights, arrays, metadata)


def _write_npz(file: pathlib.Path, arrays: Mapping[str, np.ndarray], _: Any):
    with file.open("wb") as stream:
        write_npz(stream, arrays)


def _write_safetensors(
    file: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
):
    save_file(dict(arrays), str(file), metadata)


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
