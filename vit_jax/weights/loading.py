"""Reads weights from wherever they are: a work directory, a file, a name, a URL."""

import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.steps import load_description, load_params
from vit_jax.config import default_config, to_plain
from vit_jax.errors import UserError
from vit_jax.weights.adapt import adapt as adapt
from vit_jax.weights.adapt import new_head_because as new_head_because
from vit_jax.weights.files.recognise import recognise
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, Reading
from vit_jax.weights.formats.single_file import is_single_file, read_single_file
from vit_jax.weights.published.download import resolve

logger = logging.getLogger(__name__)

# What a directory of somebody's model keeps its weights in, the best first.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
# A companion says at least one of these; config.json is a common name.
_COMPANION_KEYS = ("model_type", "architectures", "architecture")
_LARGEST_COMPANION = 1 << 26  # bytes


class Weights(NamedTuple):
    """Parameters, and what they need to be used."""

    description: Description
    params: Any  # nested dict of float32 numpy arrays


def load_weights(
    source: str | pathlib.Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Weights:
    """Reads weights; the format is recognised by what the file holds.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP; a
        file in our own, Google's, big_vision's, timm's or Hugging Face's format; a
        directory with such a file and its config.json; a published name, see
        `python -m vit_jax.models`; "hf:owner/name"; an https address.
      num_heads: for a file that does not say it.
      image_size: (height, width) that the weights were trained at, for a file whose
        number of patches is no square.

    Raises:
      UserError: nothing is there, or it is none of these, or it is damaged.
    """
    workdir = _workdir(source)
    if workdir is not None:
        path, step = workdir
        description = load_description(path, step)
        # Of the same step, even if a running training saves another one meanwhile.
        return Weights(description, load_params(path, description.step))
    resolved = resolve(source)
    file = _weight_file(resolved.path)
    with open_tensors(file) as tensors:
        if is_single_file(tensors):
            return Weights(*read_single_file(tensors))
        hints = Hints(
            config=_companion(file, "config.json") or _embedded(tensors.metadata),
            preprocessor=_companion(file, "preprocessor_config.json"),
            num_heads=num_heads,
            image_size=image_size,
        )
        reading, params = read_tensors(tensors, hints)
    if resolved.published is not None:
        reading = resolved.published.complete(reading, file)
    heads = getattr(reading.architecture, "num_heads", None)
    if num_heads is not None and num_heads != heads:
        raise UserError(
            f"num_heads={num_heads}, but {file} is of a model with "
            f"{heads or 'no'} attention heads; leave num_heads out"
        )
    for sentence in reading.assumed:
        logger.warning("%s: %s", file.name, sentence)
    return Weights(_described(reading), params)


def _described(reading: Reading) -> Description:
    """As a checkpoint of ours says it, with the defaults for what nobody said."""
    config = to_plain(default_config()) | {
        "dataset": "",
        "image_size": list(reading.architecture.image_size),
        "loss": reading.loss,
        "posemb_resize": reading.posemb_resize,
    }
    return Description(
        reading.architecture, reading.preprocessing, reading.class_names, config, step=0
    )


def _workdir(source: str | pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
    """The work directory, and the step if the path names one; None if it is none."""
    # Absolute, so that "." and "10" have a parent.
    path = pathlib.Path(source).expanduser().absolute()
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return path.parent.parent, int(path.name)
    # By os.path, which finds nothing at an address that is too long for a path.
    if path.name == "checkpoints" and os.path.isdir(path):
        return path.parent, None
    if os.path.isdir(path / "checkpoints"):
        return path, None
    # Claimed by a run that has saved nothing yet: its own error says so.
    own = os.path.isfile(path / "config.json") and not _candidates(path)
    return (path, None) if own else None


def _weight_file(path: pathlib.Path) -> pathlib.Path:
    """The file with the weights: the path itself, or the one inside a directory."""
    if not path.is_dir():
        return path
    candidates = _candidates(path)
    preferred = [path / name for name in _WEIGHT_FILES if path / name in candidates]
    if preferred or len(candidates) == 1:
        return [*preferred, *candidates][0]
    names: Sequence[str] = [file.name for file in candidates]
    raise UserError(
        f"{path} is {recognise(path)}: "
        + (f"pass one of {', '.join(names)}" if names else "no weights are in it")
        + ". A work directory of vit_jax holds config.json and checkpoints/; a model's "
        f"directory holds {' or '.join(_WEIGHT_FILES)}."
    )


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(path.iterdir()) if path.is_dir() else []
    suffixes = (
        ".safetensors",
        ".safetensors.index.json",
        ".npz",
        ".bin",
        ".pth",
        ".pt",
    )
    return [file for file in files if file.name.endswith(suffixes) and file.is_file()]


def _companion(file: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON file that lies beside the weights; {} if there is none of a model."""
    path = file.with_name(name)
    if not path.is_file() or path == file:
        return {}
    try:
        if path.stat().st_size > _LARGEST_COMPANION:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} beside the weights cannot be read ({error}); mend it, or move the "
            "weights to a directory without it"
        ) from error
    if not isinstance(found, dict):
        return {}
    return found if name != "config.json" or found.keys() & _COMPANION_KEYS else {}


def _embedded(metadata: Any) -> dict[str, Any]:
    """The config that our timm export puts into a file that has none beside it."""
    try:
        found = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
