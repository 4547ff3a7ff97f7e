"""Directories of somebody's model: the file with its weights, and its companions."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.weights.files.recognise import is_pickle, is_zip, recognise
from vit_jax.words import plain, shortened

# What such a directory keeps its weights in, the best first.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".npz",
    ".bin",
    ".bin.index.json",
    ".pth",
    ".pt",
)
# One of several shards: model-00001-of-00003.safetensors.
_SHARD = re.compile(r"(.+)-\d{5}-of-(?!00001\b)\d{5}(\.\w+)$")
# Weights in formats that are not read, and what writes them.
_OTHERS = {
    r"\.(h5|keras)$": "Keras",
    r"\.msgpack$": "Flax",
    r"\.ckpt(\.|$)": "TensorFlow",
    r"\.(pb|tflite)$": "TensorFlow",
    r"\.onnx$": "ONNX",
    r"\.gguf$": "GGML",
    r"\.ot$": "Rust",
    r"\.(mlmodel|mlpackage)$": "Core ML",
}
# A companion says at least one of these; config.json is a common name.
_COMPANION_KEYS = ("model_type", "architectures", "architecture")
_LARGEST_COMPANION = 1 << 26  # bytes


def says_model(path: pathlib.Path) -> bool:
    """Whether a directory's config.json is that of a model."""
    try:
        return is_companion(_read_json(path / "config.json"))
    except (OSError, ValueError, RecursionError):
        return False


def holds_model(path: pathlib.Path) -> bool:
    """Whether that is so, or weights are in the directory, readable here or not."""
    try:
        return says_model(path) or bool(_candidates(path) or _unreadable(path))
    except OSError:
        return False


def weight_file(path: pathlib.Path) -> pathlib.Path:
    """The file with the weights: the path itself, or the one inside a directory.

    Raises:
      UserError: there is none, or there are several, or shards without their index.
    """
    if not path.is_dir():
        return path
    candidates = _candidates(path)
    whole = [file for file in candidates if not _SHARD.match(file.name)]
    preferred = [path / name for name in _WEIGHT_FILES if path / name in whole]
    if preferred:
        return preferred[0]
    # Shards are read by their index.
    if len(whole) == 1 and (whole == candidates or whole[0].suffix == ".json"):
        return whole[0]
    raise UserError(f"{path} is {recognise(path)}: {_advice(path, candidates, whole)}")


def companion(file: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON file that lies beside the weights; {} if there is none of a model.

    Raises:
      UserError: it cannot be read.
    """
    path = file.with_name(name)
    if not path.is_file() or path == file:
        return {}
    try:
        found = _read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} beside the weights cannot be read ({error}); mend it, or move the "
            "weights to a directory without it"
        ) from error
    if not isinstance(found, dict):
        return {}
    return found if name != "config.json" or is_companion(found) else {}


def is_companion(config: Any) -> bool:
    """Whether what a config.json holds is of a model."""
    return isinstance(config, dict) and not config.keys().isdisjoint(_COMPANION_KEYS)


def _read_json(path: pathlib.Path) -> Any:
    if path.stat().st_size > _LARGEST_COMPANION:
        raise ValueError("too large")
    return json.loads(path.read_text(encoding="utf-8"))


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """Files that may be the weights."""
    return [
        file
        for file in sorted(path.iterdir())
        if (file.name.endswith(_SUFFIXES) or _is_lightning(file)) and file.is_file()
    ]


def _is_lightning(file: pathlib.Path) -> bool:
    """Whether it is called as TensorFlow's are, and PyTorch wrote it."""
    if file.suffix != ".ckpt" or not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(64)
    return is_zip(start) or is_pickle(start)


def _unreadable(path: pathlib.Path) -> list[str]:
    """Names of weights in other formats, each with what wrote it."""
    return [
        f"{plain(file.name)} ({maker})"
        for file in sorted(path.iterdir())
        for pattern, maker in _OTHERS.items()
        if re.search(pattern, file.name) and not _is_lightning(file)
    ]


def _advice(
    path: pathlib.Path,
    candidates: Sequence[pathlib.Path],
    whole: Sequence[pathlib.Path],
) -> str:
    """What is the matter with a directory, and what to do."""
    shards = [match for file in candidates if (match := _SHARD.match(file.name))]
    names = [file.name for file in whole]
    if shards:
        indices = [f"{match[1]}{match[2]}.index.json" for match in shards]
        indices = list(dict.fromkeys(indices))
        other = f", or pass {shortened(names, plain)}" if names else ""
        return (
            f"{len(shards)} shards of a model are in it, and not the index that says "
            f"what each of them holds. Fetch {shortened(indices, plain)} into it{other}"
        )
    if names:
        return f"pass one of {shortened(names, plain)}. {_EXPECTED}"
    if unreadable := _unreadable(path):
        return (
            "its weights are in formats that are not read here: "
            f"{shortened(unreadable)}. Fetch one of {' or '.join(_WEIGHT_FILES)} "
            "of the same model, or convert them with the library that wrote them"
        )
    return f"no weights are in it. {_EXPECTED}"


_EXPECTED = (
    "A work directory of vit_jax holds config.json and checkpoints/; a model's "
    f"directory holds {' or '.join(_WEIGHT_FILES)}."
)
