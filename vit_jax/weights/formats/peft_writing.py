"""Adapters of this package, written as PEFT saves its own.

PEFT finds the modules of an adapter by their names, which differ between libraries and
between versions 4 and 5 of transformers, so an adapter is written for one of these.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.formats import timm
from vit_jax.weights.formats.huggingface_families import family_to_write
from vit_jax.weights.formats.layout import Row, as_weights, flatten
from vit_jax.weights.formats.peft_names import (
    Naming,
    naming_to_write,
    targets_of,
)
from vit_jax.words import did_you_mean, plain, shortened

# Naming → the library that loads an adapter with it.
NAMES = {
    "transformers5": "transformers 5 and newer",
    "transformers4": "transformers 4 and older",
    "timm": "timm",
}
_WRAPPERS = "base_model.model."


class WrittenAdapter(NamedTuple):
    """The content of an adapter's directory.

    Attributes:
      config: that of adapter_config.json, without the base's name.
      tensors: those of adapter_model.safetensors.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def check_names(names: str) -> None:
    """Raises UserError if there is no such naming."""
    if names not in NAMES:
        listed = "; ".join(f"{key} (for {what})" for key, what in NAMES.items())
        raise UserError(
            f"no names {names!r} for PEFT's adapters: choose from {listed}"
            f"{did_you_mean(names, NAMES)}"
        )


def write_adapter(
    architecture: Architecture,
    params: Mapping[str, Any],
    names: str,
    *,
    trained: Collection[str] | None = None,
    expand_rank: bool = False,
    dropout: float = 0.0,
) -> WrittenAdapter:
    """Converts adapters to PEFT's config and tensors.

    Args:
      architecture: that of the model, with adapters.
      params: its parameters, a nested dict.
      names: a key of `NAMES`.
      trained: "/"-joined paths of parameters besides the adapters that the base does
        not have as they are; by default those of the heads.
      expand_rank: write separate adapters of queries, keys and values for one layer
        that has all three as a single adapter of higher rank.
      dropout: the rate of the adapters' dropout in training.

    Raises:
      UserError: the names are unknown, the model has no adapters, or these names cannot
        express it. Lists all reasons.
    """
    check_names(names)
    a: Any = architecture
    flat = {path: as_weights(array) for path, array in flatten(params).items()}
    if not getattr(a, "lora_rank", 0):
        raise UserError(
            "PEFT's format is for adapters, and this model has none: train one with "
            "--config.lora.rank=8, or write a whole model in another format"
        )
    plain_model = _without_adapters(a)
    problems = _inexpressible(plain_model, names)
    if problems:
        others = [key for key in NAMES if not _inexpressible(plain_model, key)]
        rest = f"Names that can: {', '.join(others)}" if others else "Merge the adapter"
        raise UserError(
            f"PEFT's format with the names of {NAMES[names]} cannot express this "
            f"model: {'; '.join(problems)}. {rest}"
        )
    naming = naming_to_write(plain_model, names)
    bare = naming.family is not None and naming.family.bare
    prefix = naming.prefix if a.num_classes or not bare else ""
    writer = _Writer(a, flat, naming, prefix, expand_rank)
    heads = [path for path in flat if path.startswith("head")]
    extra = set(heads if trained is None else trained)
    lora, config = writer.adapters()
    whole, more = writer.beside(extra)
    tensors = {f"{_WRAPPERS}{name}": array for name, array in (lora | whole).items()}
    fixed = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "revision": None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": a.lora_rank_stabilized,
        "lora_dropout": dropout,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    return WrittenAdapter(fixed | config | more, contiguous)


def _without_adapters(a: Any) -> Architecture:
    """Returns the architecture without adapters, and with positions of any kind."""
    fields = {
        field.name: field.default
        for field in dataclasses.fields(a)
        if field.name.startswith("lora_") or field.name == "sincos_denominator"
    }
    return dataclasses.replace(a, **fields, posemb="learned")


def _inexpressible(a: Architecture, names: str) -> list[str]:
    if names == "timm":
        return timm.FORMAT.inexpressible(a)
    return family_to_write(a)[1]


class _Writer:
    """The parameters of a model beside the rows of a naming."""

    def __init__(
        self,
        architecture: Any,
        flat: Mapping[str, np.ndarray],
        naming: Naming,
        prefix: str,
        expand_rank: bool,
    ):
        self._a, self._flat, self._naming = architecture, flat, naming
        self._prefix, self._expand = prefix, expand_rank
        # Module → its row, those with adapters.
        self._adapted = {
            module: row
            for module, row in naming.modules.items()
            if any(_adapter_of(path) in flat for path in targets_of(row))
        }

    def adapters(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Makes the adapters' tensors and the fields of the config about them."""
        packed = {m: row for m, row in self._adapted.items() if len(row.ours) > 1}
        blocks = self._blocks(packed)
        rank, alpha = self._a.lora_rank, self._a.lora_alpha
        tensors: dict[str, np.ndarray] = {}
        for module, row in self._adapted.items():
            wide = blocks if module in packed else 0
            a, b = self._matrices(row, wide)
            name = self._prefix + module
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        patterns: dict[str, Any] = {
            "rank_pattern": {},
            "alpha_pattern": {},
        }
        if blocks:
            grown = math.sqrt(blocks) if self._a.lora_rank_stabilized else blocks
            ends = {module.rpartition(".")[2] for module in packed}
            patterns = {
                "rank_pattern": dict.fromkeys(ends, rank * blocks),
                "alpha_pattern": dict.fromkeys(ends, _number(alpha * grown)),
            }
        return tensors, {
            "r": rank,
            "lora_alpha": _number(alpha),
            "target_modules": self._targets(),
            **patterns,
        }

    def _blocks(self, packed: Mapping[str, Row]) -> int:
        """Returns the number of adapters in one of a packed layer; 0 if one suffices.

        Raises:
          UserError: several are needed, and the caller did not ask for that.
        """
        if all(len(self._distinct(row)) == 1 for row in packed.values()):
            return 0
        count = max(
            sum(_adapter_of(path) in self._flat for path in row.ours)
            for row in packed.values()
        )
        if self._expand:
            return count
        rank = self._a.lora_rank
        names = [
            name for name in ("query", "key", "value") if name in self._a.lora_targets
        ]
        raise UserError(
            f"{self._naming.title} has queries, keys and values in one layer (such as "
            f"{next(iter(packed))}), for which PEFT has one lora_A. This model has "
            f"separate ones for {', '.join(names)}. As blocks of one adapter, they "
            f"need the rank {rank * count} in place of {rank}, and two thirds of the "
            "lora_B are zeros: pass --expand_rank to python -m vit_jax.convert to "
            "write that, or choose the names of transformers (--names=)"
        )

    def _distinct(self, row: Row) -> list[np.ndarray]:
        """Lists the different A's of a packed layer."""
        found: list[np.ndarray] = []
        for path in row.ours:
            a = self._flat.get(_adapter_of(path))
            if a is not None and not any(np.array_equal(a, other) for other in found):
                found.append(a)
        return found

    def _matrices(self, row: Row, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns A [r, in] and B [out, r] of a module.

        With `blocks`, they are those of so many adapters, one below the other.
        """
        rank = self._a.lora_rank
        width = rank * max(blocks, 1)
        a_parts, b_parts, at = [], [], 0
        for path in row.ours:
            outputs = self._flat[path].shape[1]
            b = np.zeros((outputs, width), np.float32)
            if _adapter_of(path) in self._flat:
                a_parts.append(self._flat[_adapter_of(path)].T)
                b[:, at : at + rank] = self._flat[_adapter_of(path, "b")].T
                at += rank if blocks else 0
            b_parts.append(b)
        a = np.concatenate(a_parts) if blocks else a_parts[0]
        return a, np.concatenate(b_parts)

    def _targets(self) -> list[str] | str:
        """Names the adapted modules by the shortest ends that mean no others."""
        # A model without a head has a pooler, which its tables know as a head's.
        modules = [*self._naming.modules, "pooler.dense"]
        ends: dict[str, None] = {}
        for module in self._adapted:
            parts = module.split(".")
            names = (".".join(parts[i:]) for i in range(len(parts) - 1, 0, -1))
            end = next((n for n in names if not self._others(n, modules)), None)
            if end is None or re.search(r"(^|\.)\d+\.", end):
                return self._pattern()
            ends[end] = None
        return [*ends]

    def _others(self, end: str, modules: Iterable[str]) -> bool:
        means = (m for m in modules if m == end or m.endswith(f".{end}"))
        return any(module not in self._adapted for module in means)

    def _pattern(self) -> str:
        start = self._naming.layers
        parts = [
            re.escape(module.removeprefix(start).partition(".")[2])
            for module in self._adapted
        ]
        return rf"(.*\.)?{re.escape(start)}\d+\.({'|'.join(dict.fromkeys(parts))})"

    def beside(
        self, trained: Collection[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Makes the tensors of modules that were trained whole, and their fields.

        Biases of modules that are not are all written, as PEFT does with bias "all".

        Raises:
          UserError: PEFT cannot save a parameter, because no module has it alone.
        """
        rows = {path: row for row in self._naming.rows for path in row.ours}
        trained = {path for path in trained if not re.search(r"/lora_[ab]$", path)}
        whole = {
            rows[path].theirs.rpartition(".")[0]
            for path in trained
            if path in rows and not _is_lone_bias(path, rows[path])
        }
        impossible = [
            path
            for path in trained
            if path not in rows
            or not rows[path].theirs.endswith((".weight", ".bias"))
            or (path.endswith("/kernel") and rows[path].theirs[:-7] in self._adapted)
        ]
        if impossible:
            raise UserError(
                "PEFT's format with the names of "
                f"{NAMES[self._naming.key]} has no place for what was trained beside "
                f"the adapters: {shortened(sorted(impossible), plain)}. Merge the "
                "adapter, and write the whole model in another format"
            )
        left = [p for p in trained if rows[p].theirs.rpartition(".")[0] not in whole]
        found = {
            row.theirs: row
            for row in self._naming.rows
            if row.theirs.rpartition(".")[0] in whole
            or (left and row.theirs.endswith(".bias"))
        }
        tensors = {}
        for theirs, row in found.items():
            module, _, leaf = theirs.rpartition(".")
            inner = f"{module}.base_layer.{leaf}" if module in self._adapted else theirs
            level = "" if row.ours[0].startswith("head") else self._prefix
            if all(path in self._flat for path in row.ours):
                tensors[level + inner] = row.layout.write(
                    *(self._flat[path] for path in row.ours)
                )
        saved = [
            name.rpartition(".")[0]
            for name in tensors
            if self._bare(name).rpartition(".")[0] in whole
        ]
        return tensors, {
            "bias": "all" if left else "none",
            "modules_to_save": [*dict.fromkeys(saved)] or None,
        }

    def _bare(self, name: str) -> str:
        """Returns the table's name of a tensor; heads have no prefix."""
        inner = name.removeprefix(self._prefix)
        return inner if inner in self._naming.leaves else name


def _is_lone_bias(path: str, row: Row) -> bool:
    """Returns whether a bias is written as one of all biases, not by its module."""
    return row.theirs.endswith(".bias") and not path.startswith("head")


def _adapter_of(kernel: str, which: str = "a") -> str:
    return kernel.removesuffix("kernel") + f"lora_{which}"


def _number(value: float) -> float | int:
    """Writes a whole number as one, as PEFT does."""
    return int(value) if float(value).is_integer() else float(value)
