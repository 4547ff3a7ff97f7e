"""Adapters: the few parameters that are trained beside a frozen model.

A kind of adapter is a row of `ADAPTERS` and of `FIELDS`. A run with adapters trains
these, the head and what its objective adds; everything else keeps the values of the
pretrained weights, and is not saved with the run.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

from vit_jax.models.lora import LoraArchitecture

# Kind → regular expression for the whole paths of its parameters.
ADAPTERS = {"lora": r"(.*/)?lora_[ab]", "prompts": r"(.*/)?prompts"}
# Kind → fields of the architecture that describe it; at their defaults, there is none.
FIELDS = {
    "lora": ("lora_rank", "lora_alpha", "lora_targets", "lora_rank_stabilized"),
    "prompts": ("prompts", "prompts_deep"),
}
# The layers that read a model's features; they are trained beside every adapter.
HEADS = r"(head|head_distillation|pre_logits)/.*"

A = TypeVar("A")


def adapters_of(architecture: Any) -> tuple[str, ...]:
    """Returns the kinds of adapters that an architecture has, keys of `ADAPTERS`."""
    fields = {field.name: field for field in dataclasses.fields(architecture)}
    return tuple(
        kind
        for kind, names in FIELDS.items()
        if any(
            name in fields and getattr(architecture, name) != fields[name].default
            for name in names
        )
    )


def without_adapters(architecture: A, kinds: Collection[str] = tuple(FIELDS)) -> A:
    """Returns the architecture without adapters of some kinds, by default of any."""
    record: Any = architecture
    names = {name for kind in kinds for name in FIELDS[kind]}
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(record)
        if field.name in names
    }
    return dataclasses.replace(record, **defaults)


def is_adapter(path: str, kinds: Collection[str] = tuple(ADAPTERS)) -> bool:
    """Returns whether a path is that of an adapter's parameter, of some kinds."""
    return any(re.fullmatch(ADAPTERS[kind], path) for kind in kinds)


def is_head(path: str) -> bool:
    """Returns whether a path is that of a parameter of the head."""
    return re.fullmatch(HEADS, path) is not None


def lora_of(architecture: Any) -> LoraArchitecture | None:
    """Returns the LoRA adapters of an architecture of any kind; None = without."""
    return getattr(getattr(architecture, "block", None), "lora", None)


def merged_lora(params: Mapping[str, Any], architecture: A) -> tuple[dict[str, Any], A]:
    """Adds what the LoRA adapters compute to the kernels, and removes the adapters.

    K becomes K + scale · A·B, computed in float64, so that the result is the float32
    nearest to the exact one.

    Args:
      params: nested dict of arrays.
      architecture: their architecture.

    Returns:
      Parameters of the same function without adapters, as NumPy arrays where they
      changed, and their architecture.
    """
    lora = lora_of(architecture)
    if lora is None:
        return dict(params), architecture

    def merged(node: Mapping[str, Any]) -> dict[str, Any]:
        if "lora_a" in node:
            a, b, kernel = (
                np.asarray(node[name], np.float64)
                for name in ("lora_a", "lora_b", "kernel")
            )
            whole = (kernel + lora.scale * (a @ b)).astype(np.float32)
            rest = {k: x for k, x in node.items() if k not in ("lora_a", "lora_b")}
            return rest | {"kernel": whole}
        return {k: merged(x) if isinstance(x, Mapping) else x for k, x in node.items()}

    return merged(params), without_adapters(architecture, ["lora"])
