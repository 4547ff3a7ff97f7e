"""Model directories: the file with the weights, and its companions."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.weights.files.recognise import is_pickle, is_zip, recognise
from vit_jax.words import plain, shortened

# Usual names of the file with the weights, in order of preference.
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
# Pattern of weights in formats that are not read → the library that writes them.
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
# A model's config.json has one of these; other software uses the name config.json too.
_COMPANION_KEYS = ("model_type", "architectures", "architecture")
_LARGEST_COMPANION = 1 << 26  # bytes


def says_model(path: pathlib.Path) -> bool:
    """Returns whether a directory's config.json describes a model."""
    try:
        return is_companion(_read_json(path / "config.json"))
    except (OSError, ValueError, RecursionError):
        return False


def holds_model(path: pathlib.Path) -> bool:
    """Returns whether a directory has a model's config.json, or weights of any kind."""
    try:
        return says_model(path) or bool(_candidates(path) or _unreadable(path))
    except OSError:
        return False


def weight_file(path: pathlib.Path) -> pathlib.Path:
    """Finds the file with the weights: the path itself, or one inside a directory.

    Raises:
      UserError: there are none, several, or shards without their index.
    """
    if not path.is_dir():
        return path
    candidates = _candidates(path)
    whole = [file for file in candidates if not _SHARD.match(file.name)]
    preferred = [path / name for name in _WEIGHT_FILES if path / name in whole]
    if preferred:
        return preferred[0]
    # Shards are read through their index.
    if len(whole) == 1 and (whole == candidates or whole[0].suffix == ".json"):
        return whole[0]
    raise UserError(f"{path} is {recognise(path)}: {_advice(path, candidates, whole)}")


def companion(file: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a JSON file beside the weights; {} if absent or not a model's.

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
            f"{path} beside the weights cannot be read ({error}); fix it, or move the "
            "weights to a directory without it"
        ) from error
    if not isinstance(found, dict):
        return {}
    return found if name != "config.json" or is_companion(found) else {}


def is_companion(config: Any) -> bool:
    """Returns whether the content of a config.json describes a model."""
    return isinstance(config, dict) and not config.keys().isdisjoint(_COMPANION_KEYS)


def _read_json(path: pathlib.Path) -> Any:
    if path.stat().st_size > _LARGEST_COMPANION:
        raise ValueError("too large")
    return json.loads(path.read_text(encoding="utf-8"))


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files that may hold the weights."""
    return [
        file
        for file in sorted(path.iterdir())
        if (file.name.endswith(_SUFFIXES) or _is_lightning(file)) and file.is_file()
    ]


def _is_lightning(file: pathlib.Path) -> bool:
    """Returns whether PyTorch wrote a .ckpt, a suffix that TensorFlow uses as well."""
    if file.suffix != ".ckpt" or not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(64)
    return is_zip(start) or is_pickle(start)


def _unreadable(path: pathlib.Path) -> list[str]:
    """Lists weights in formats that are not read, each with the library's name."""
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
    """Explains why a directory cannot be used, and how to fix that."""
    shards = [match for file in candidates if (match := _SHARD.match(file.name))]
    names = [file.name for file in whole]
    if shards:
        indices = [f"{match[1]}{match[2]}.index.json" for match in shards]
        indices = list(dict.fromkeys(indices))
        other = f", or pass {shortened(names, plain)}" if names else ""
        return (
            f"it holds {len(shards)} shards of a model, but not the index of their "
            f"tensors. Fetch {shortened(indices, plain)} into it{other}"
        )
    if names:
        return f"pass one of {shortened(names, plain)}. {_EXPECTED}"
    if unreadable := _unreadable(path):
        return (
            "its weights are in formats that vit_jax does not read: "
            f"{shortened(unreadable)}. Fetch one of {' or '.join(_WEIGHT_FILES)} "
            "of the same model, or convert them with the library that wrote them"
        )
    return f"it holds no weights. {_EXPECTED}"


_EXPECTED = (
    "A work directory of vit_jax holds config.json and checkpoints/; a model's "
    f"directory holds {' or '.join(_WEIGHT_FILES)}."
)
