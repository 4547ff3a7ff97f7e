"""Model directories: the file with the weights, and its companions."""

import json
import logging
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.weights.files.recognise import is_pickle, is_zip, recognise
from vit_jax.words import plain, shortened

logger = logging.getLogger(__name__)

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
    ".pth.tar",
    ".pt.tar",
)
# Files of training programs that hold no weights of a model.
_OF_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states?|training_args|trainer_state)"
    r"[\w.-]*$"
)
# Words in the names of a run's checkpoints, in order of preference.
_CHOICES = (("best",), ("last", "latest", "final"), ("checkpoint", "model", "weights"))
# One of several shards: model-00001-of-00003.safetensors.
_SHARD = re.compile(r"(.+)-\d{5}-of-(?!00001\b)\d{5}(\.\w+)$")
_STEP = r"epoch|step|iter|checkpoint|ckpt"
_ORBAX = {"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"}
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
# Files beside weights, with facts that the weights do not record.
COMPANIONS = ("config.json", "preprocessor_config.json")
# An adapter of PEFT beside its config, without the model that it belongs to.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
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

    Of the checkpoints of a run, the best one is taken, else the last one, and that is
    logged.

    Raises:
      UserError: there are none, several, or shards without their index.
    """
    if not path.is_dir():
        return path
    weights = (file.name for file in path.iterdir() if _has_suffix(file))
    if lost := dangling(path, {*weights, *COMPANIONS}):
        raise UserError(
            f"{path} is incomplete: {shortened(lost, plain)} in it "
            f"{'is a link' if len(lost) == 1 else 'are links'} to what does not exist. "
            "Fetch the model again, or pass the path of a complete copy"
        )
    candidates = _candidates(path)
    whole = [file for file in candidates if not _SHARD.match(file.name)]
    preferred = [path / name for name in _WEIGHT_FILES if path / name in whole]
    if preferred:
        return preferred[0]
    # Shards are read through their index.
    if len(whole) == 1 and (whole == candidates or whole[0].suffix == ".json"):
        return whole[0]
    if whole == candidates and (chosen := _usual_choice(whole)):
        others = [file.name for file in whole if file != chosen]
        logger.warning(
            "%s: took %s; also there: %s. Pass the path of one to use it",
            path,
            plain(chosen.name),
            shortened(others, plain),
        )
        return chosen
    raise UserError(f"{path} is {recognise(path)}: {_advice(path, candidates, whole)}")


def companion(file: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a JSON file beside the weights; {} if absent or not a model's.

    Raises:
      UserError: it cannot be read.
    """
    path = file.with_name(name)
    if dangling(file.parent, [name]):
        raise UserError(
            f"{path} beside the weights is a link to what does not exist: fetch it "
            "again, or move the weights to a directory without it"
        )
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
    return isinstance(config, dict) and any(
        config.get(key) is not None for key in _COMPANION_KEYS
    )


def dangling(path: pathlib.Path, names: Iterable[str]) -> list[str]:
    """Selects the names in a directory that are links to what does not exist.

    Such as the files of a snapshot in Hugging Face's cache whose blobs were removed.
    """
    files = ((name, path / name) for name in sorted(names))
    return [name for name, file in files if file.is_symlink() and not file.exists()]


def _read_json(path: pathlib.Path) -> Any:
    if path.stat().st_size > _LARGEST_COMPANION:
        raise ValueError("too large")
    return json.loads(path.read_text(encoding="utf-8"))


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files that may hold the weights."""
    files = [
        file for file in sorted(path.iterdir()) if _has_suffix(file) and file.is_file()
    ]
    return [file for file in files if not _OF_TRAINING.match(file.name)] or files


def _has_suffix(file: pathlib.Path) -> bool:
    return file.name.lower().endswith(_SUFFIXES) or _is_lightning(file)


def _usual_choice(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """Chooses the best or last of a run's checkpoints; None if that is unclear."""
    for words in _CHOICES:
        found = [
            f for f in files if set(re.split("[^a-z]+", f.name.lower())) & {*words}
        ]
        if found:
            return found[0] if len(found) == 1 else _latest(found)
    return _latest(files)


def _latest(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """Returns the file of the last epoch or step; None if names differ otherwise."""
    numbered = {tuple(map(int, re.findall(r"\d+", f.name))): f for f in files}
    names = {re.sub(r"\d+", "0", file.name) for file in files}
    of_run = all(re.search(_STEP, file.name.lower()) for file in files)
    if len(names) != 1 or len(numbered) < len(files) or not of_run:
        return None
    # Two numbers may be those of an epoch and its step, or of a fold.
    varying = [set(column) for column in zip(*numbered, strict=True)]
    if sum(len(column) > 1 for column in varying) > 1:
        return None
    return numbered[max(numbered)]


def _is_lightning(file: pathlib.Path) -> bool:
    """Returns whether PyTorch wrote a .ckpt or .tar, which others write as well."""
    if file.suffix.lower() not in (".ckpt", ".tar") or not file.is_file():
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
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir()]
    if inside := [folder.name for folder in folders if holds_model(folder)]:
        return (
            "it holds no weights itself; pass the path of a model inside: "
            f"{shortened(inside, plain)}"
        )
    if any(entry.name in _ORBAX for entry in path.iterdir()):
        return (
            "it is an Orbax checkpoint of another program, whose layout is not known. "
            "Save the parameters there with numpy.savez, under the names of a format "
            "that vit_jax reads"
        )
    return f"it holds no weights. {_EXPECTED}"


_EXPECTED = (
    "A work directory of vit_jax holds config.json and checkpoints/; a model's "
    f"directory holds {' or '.join(_WEIGHT_FILES)}."
)
