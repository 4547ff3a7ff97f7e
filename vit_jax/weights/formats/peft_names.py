"""The names that PEFT's adapters have for the modules of a model, by library.

A naming is a list of rows like those of a format, without the prefix of the encoder's
names: whatever stands in front of them in an adapter is found when it is read.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vit_jax.models import Architecture
from vit_jax.weights.formats import timm
from vit_jax.weights.formats.huggingface import rows_of_family
from vit_jax.weights.formats.huggingface_families import (
    FAMILIES,
    Family,
    family_to_write,
)
from vit_jax.weights.formats.layout import Row

# The layers of a block that can have an adapter here.
_TARGET = re.compile(r"blocks_(\d+)/(?:attention|mlp)/(\w+)/kernel")
# Part of a block → its name in memory in version 5 of transformers, where that differs
# from the name in files.
_ATTENTION_5 = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.o_proj",
}
_MLP_5 = {"mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}


class Naming(NamedTuple):
    """The names of a library's modules.

    Attributes:
      key: "transformers4", "transformers5" or "timm".
      title: the library's name in messages.
      prefix: prefix of the encoder's names in a classifier.
      layers: start of the names in blocks, up to the number.
      rows: the table, for a model with a head; names lack the prefix.
      family: the family of transformers; None for timm.
    """

    key: str
    title: str
    prefix: str
    layers: str
    rows: Sequence[Row]
    family: Family | None = None

    @property
    def modules(self) -> dict[str, Row]:
        """Modules with a matrix: name → row of the matrix."""
        return {
            row.theirs.removesuffix(".weight"): row
            for row in self.rows
            if row.theirs.endswith(".weight")
            and all(path.endswith("/kernel") for path in row.ours)
        }

    @property
    def leaves(self) -> dict[str, Row]:
        """All tensors: name → row."""
        return {row.theirs: row for row in self.rows}


def targets_of(row: Row) -> dict[str, str]:
    """Returns the layers that hold adapters here and share this matrix.

    Returns:
      {path of the kernel: name of the layer in its block}; {} for other matrices.
    """
    found = {path: _TARGET.fullmatch(path) for path in row.ours}
    return {path: match[2] for path, match in found.items() if match}


def namings(architecture: Architecture) -> list[Naming]:
    """Lists the namings in which an adapter of this model may be, the likely first.

    Args:
      architecture: a model with a head.
    """
    own, _ = family_to_write(architecture)
    made = [
        _of_transformers(architecture, family, version)
        for family in sorted(FAMILIES, key=lambda family: family is not own)
        if family.layer_scale == architecture.layer_scale
        for version in (5, 4)
    ]
    return [*made[:2], _of_timm(architecture), *made[2:]]


def naming_to_write(architecture: Architecture, key: str) -> Naming:
    """Returns the naming of this key for a model; its table has a head in any case."""
    family, _ = family_to_write(architecture)
    classes = architecture.num_classes or 1
    with_head = dataclasses.replace(architecture, num_classes=classes)
    if key == "timm":
        return _of_timm(with_head)
    return _of_transformers(with_head, family, int(key[-1]))


def shared_names(names: Sequence[str]) -> list[str]:
    """Writes names of several blocks once, with * in place of the number."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))


def _of_timm(architecture: Architecture) -> Naming:
    rows = timm.FORMAT.rows(architecture)
    return Naming("timm", "timm", "", "blocks.", rows)


def _of_transformers(
    architecture: Architecture, family: Family, version: int
) -> Naming:
    family = _in_version_5(family) if version == 5 else family
    rows = [
        row._replace(theirs=row.theirs.removeprefix(family.prefix))
        for row in rows_of_family(architecture, family)
    ]
    title = f"{family.title} of transformers {version}"
    key = f"transformers{version}"
    return Naming(key, title, family.prefix, family.layers, rows, family)


def _in_version_5(family: Family) -> Family:
    """Returns the family with the names that its modules have in version 5."""
    if not family.renames:  # SigLIP's encoder, which is the whole vision model there
        return family._replace(prefix="")
    layer: Mapping[str, str] = {**family.layer, **_ATTENTION_5}
    if not any(re.match(pattern, "layers.0.") for pattern, _ in family.renames):
        return family._replace(layer=layer)
    return family._replace(layer={**layer, **_MLP_5}, layers="layers.")
