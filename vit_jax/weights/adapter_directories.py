"""Directories with an adapter of PEFT: the base that it belongs to, and its files.

A directory holds adapter_config.json and adapter_model.safetensors (or .bin). Files
that this package writes also record the base's checksum, the names of the classes and
the meaning of the outputs, under the key `vit_jax` of the safetensors metadata, which
other programs ignore.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models.adapters import adapters_of, is_head, lora_of, merged_lora
from vit_jax.models.outputs import EXCLUSIVE, MEANINGS, readable
from vit_jax.weights.base import check_same, fitted_to, record_of
from vit_jax.weights.contents import Weights, split_params
from vit_jax.weights.files.directories import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    dangling,
    says_model,
)
from vit_jax.weights.files.tensors import Tensors, open_tensors
from vit_jax.weights.formats.layout import flatten
from vit_jax.weights.formats.peft import read_adapter
from vit_jax.weights.formats.peft_config import PeftConfig, read_config
from vit_jax.weights.formats.peft_writing import write_adapter
from vit_jax.weights.published.names import find
from vit_jax.weights.published.zoo import HUB
from vit_jax.words import plain, shortened

logger = logging.getLogger(__name__)

_METADATA = "vit_jax"
_ASK = "pass it as base= (in commands --base=): a path, or a name such as hf:OWNER/NAME"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ON_HUB = re.compile(rf"{re.escape(HUB)}/(?P<name>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/")


class Beside(NamedTuple):
    """A base, and the parameters of a model with adapters that are not the base's.

    Attributes:
      base: where the base was read from.
      checksum: that of the base; see `vit_jax.weights.base.checksum`.
      trained: "/"-joined paths of the parameters that are not the base's.
    """

    base: str
    checksum: str
    trained: frozenset[str]


class Peft(NamedTuple):
    """Options of writing for PEFT.

    Attributes:
      names: a key of `peft_writing.NAMES`; "" = those of the base's library.
      expand_rank: see `write_adapter`.
      beside: the base, and what was trained.
    """

    names: str = ""
    expand_rank: bool = False
    beside: Beside | None = None


NO_OPTIONS = Peft()


def adapter_folder(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the directory of an adapter, given itself or its file; else None."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name in ADAPTER_FILES
    return folder if named and (folder / ADAPTER_CONFIG).exists() else None


def read_directory(
    folder: pathlib.Path,
    base: str | pathlib.Path | None,
    load: Callable[[str], Weights],
) -> Weights:
    """Reads an adapter of PEFT and the model that it belongs to.

    Args:
      folder: the directory.
      base: where to read the base from, if not from the place that the directory names.
      load: reads weights, as `load_weights` does.

    Raises:
      UserError: the base is unknown or cannot be read, or the adapter cannot be applied
        to it.
    """
    config = read_config(folder)
    with open_tensors(_adapter_file(folder)) as tensors:
        return _read(folder, config, tensors, base, load)


def _read(
    folder: pathlib.Path,
    config: PeftConfig,
    tensors: Tensors,
    base: str | pathlib.Path | None,
    load: Callable[[str], Weights],
) -> Weights:
    ours = _own_metadata(tensors)
    recorded = {"checksum": "", "source": ""} | ours.get("base", {})
    source = os.fspath(base or _base_of(config, folder, recorded["source"]))
    try:
        weights = load(source)
    except UserError as error:
        advice = "" if base else f"\nIf it has moved, {_ASK}"
        raise UserError(
            f"{folder} is an adapter, and its base cannot be read from {source}: "
            f"{error}{advice}"
        ) from error
    about, (own, others) = weights.description, split_params(weights)
    record = record_of(source, about, weights.params)
    if recorded["checksum"]:
        check_same(recorded, record)
    below, architecture = merged_lora(own, about.architecture)
    reading = read_adapter(tensors, config, architecture, below)  # pyright: ignore[reportArgumentType]
    for sentence in reading.assumed:
        logger.warning("%s: %s", folder.name, sentence)
    description = dataclasses.replace(
        about,
        architecture=reading.architecture,
        step=0,
        base=record if adapters_of(reading.architecture) else {},
        **_classes(ours, about, reading.architecture.num_classes, reading.new_head),
    )
    return Weights(description, reading.params | others)


def _adapter_file(folder: pathlib.Path) -> pathlib.Path:
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    links = dangling(folder, ADAPTER_FILES)
    found = f" ({shortened(links, plain)} is a link to what does not exist)"
    raise UserError(
        f"{folder} holds {ADAPTER_CONFIG}, but no adapter{found if links else ''}: "
        f"fetch {' or '.join(ADAPTER_FILES)} into it"
    )


def _base_of(config: PeftConfig, folder: pathlib.Path, recorded: str) -> str:
    """Returns the source of the base that an adapter names.

    Args:
      config: the adapter's settings.
      folder: its directory.
      recorded: the source in the metadata of our own files; "" if there is none.

    Raises:
      UserError: it names none, or one that is not here and has no name on the hub.
    """
    name = config.base or recorded
    if not name:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} does not say which model the adapter belongs "
            f"to (base_model_name_or_path is empty): {_ASK}"
        )
    for path in (pathlib.Path(name).expanduser(), folder / name):
        if os.path.exists(path):
            return str(path)
    if not config.revision:
        with contextlib.suppress(UserError):
            return find(name).name
    if _HUB_NAME.fullmatch(name):
        return f"hf:{name}" + (f"@{config.revision}" if config.revision else "")
    raise UserError(
        f"{folder / ADAPTER_CONFIG} names the base {plain(name)}, which is neither a "
        f"path on this machine nor a name on the hub: {_ASK}"
    )


def _own_metadata(tensors: Tensors) -> dict[str, Any]:
    """Returns what this package recorded in the file; {} if another one wrote it."""
    try:
        found = json.loads(tensors.metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    fine = isinstance(found, dict) and isinstance(found.get("base", {}), dict)
    return found if fine else {}


def _classes(
    ours: Mapping[str, Any], base: Description, count: int, new_head: bool
) -> dict[str, Any]:
    """Returns the names of the classes and the meaning of the outputs."""
    names, outputs = ours.get("class_names"), ours.get("outputs")
    if not isinstance(names, list) or len(names) not in (0, count):
        # A head of as many classes may be for other ones.
        names = () if new_head else base.output_names
    if outputs not in MEANINGS:
        outputs = EXCLUSIVE if new_head else base.outputs
    return {"class_names": tuple(names), "outputs": readable(outputs, count)}


def directory_content(
    description: Description, params: Any, options: Peft
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any], list[str]]:
    """Makes the content of a directory for PEFT.

    Returns:
      The tensors and metadata of adapter_model.safetensors, the content of the JSON
      files by name, and a sentence for each fact that PEFT's files do not record.

    Raises:
      UserError: it is not known what was trained, or PEFT cannot express it.
    """
    beside = options.beside
    if beside is None and lora_of(description.architecture) is not None:
        raise UserError(
            "nothing records which model these adapters were trained beside: write "
            "them from the work directory of their run, with python -m "
            "vit_jax.convert WORKDIR DIR --to=peft"
        )
    base = beside.base if beside else ""
    name, revision = _hub_name(base)
    names = options.names or _usual_names(base, name)
    architecture: Any = description.architecture
    written = write_adapter(
        architecture,
        params,
        names,
        trained=beside.trained if beside else None,
        expand_rank=options.expand_rank,
        dropout=float(description.config.get("lora", {}).get("dropout", 0.0)),
    )
    config = written.config | {
        "base_model_name_or_path": name or None,
        "revision": revision or None,
    }
    record = {
        "base": {"source": base, "checksum": beside.checksum if beside else ""},
        "class_names": list(description.output_names),
        "outputs": description.outputs,
    }
    metadata = {"format": "pt", _METADATA: json.dumps(record)}
    companions = {ADAPTER_CONFIG: dict(sorted(config.items()))}
    lost = [*_lost(description, names, base, name)]
    return written.tensors, metadata, companions, lost


def compared_with_base(
    description: Description,
    params: Any,
    load: Callable[..., Weights],
    base: str | pathlib.Path | None = None,
) -> Beside | None:
    """Finds what was trained beside a base by comparing with it.

    Args:
      description: that of a model; without a record of its base, the result is None.
      params: its parameters.
      load: reads weights, as `load_weights` does.
      base: where to read the base from, if not from the place that is recorded.

    Raises:
      UserError: the base cannot be read, or is another now.
    """
    record = description.base
    if not record:
        return None
    source = os.fspath(base or record["source"])
    heads = getattr(description.architecture, "num_heads", None)
    weights = load(source, num_heads=heads)
    check_same(record, record_of(source, weights.description, weights.params))
    before = flatten(fitted_to(description, weights))
    trained = (
        path
        for path, x in flatten(params).items()
        if is_head(path) or path not in before or not np.array_equal(x, before[path])
    )
    return Beside(record["source"], record["checksum"], frozenset(trained))


def _lost(description: Description, names: str, base: str, name: str):
    """Yields a sentence for each fact that PEFT will not know."""
    p: Preprocessing = description.preprocessing
    classes = description.architecture.num_classes
    yield (
        f"PEFT's files do not record how images are prepared: size {p.image_size}, "
        f"mean {p.mean}, standard deviation {p.std}, {p.eval_transform!r}"
    )
    if description.output_names:
        yield (
            f"PEFT's files have no place for the names of the {classes:,} classes; "
            "pass id2label= to from_pretrained of the base"
        )
    if classes:
        yield (
            f"load the base with a head of {classes:,} classes before PEFT adds the "
            f"adapter (num_{'classes' if names == 'timm' else 'labels'}={classes})"
        )
    if not name:
        yield (
            f"the base {plain(base) or '(unknown)'} has no name on the Hugging Face "
            "hub: base_model_name_or_path is empty. For PEFT, write the base with "
            "python -m vit_jax.convert BASE DIR "
            f"--to={'timm' if names == 'timm' else 'huggingface'}"
        )


def _hub_name(base: str) -> tuple[str, str]:
    """Returns the name and revision of a base on the hub, or its path; "" if none."""
    if not base:
        return "", ""
    if os.path.exists(os.path.expanduser(base)):
        # Other files and directories are none that PEFT's libraries load.
        return (base if says_model(pathlib.Path(base).expanduser()) else ""), ""
    try:
        row = find(base)
    except UserError:
        return "", ""
    matches = (_ON_HUB.match(mirror.url) for mirror in row.mirrors)
    match = next((match for match in matches if match), None)
    if not match:
        return "", ""
    return match["name"], "" if match["at"] == "main" else match["at"]


def _usual_names(base: str, name: str) -> str:
    """Returns the names of the library that the base is a model of."""
    path = pathlib.Path(base).expanduser() if base else None
    if path and (path / "config.json").is_file():
        try:
            found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = {}
        of_timm = isinstance(found, dict) and "pretrained_cfg" in found
        return "timm" if of_timm else "transformers5"
    return "timm" if name.startswith("timm/") else "transformers5"
