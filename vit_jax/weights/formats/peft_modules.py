"""Recognition of the modules that an adapter of PEFT changes, by their names."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.layout import Row
from vit_jax.weights.formats.peft_names import (
    Naming,
    namings,
    shared_names,
    targets_of,
)
from vit_jax.words import nearest, plain, shortened

# PEFT wraps a model twice.
_WRAPPERS = "base_model.model."
_ADAPTER = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)"
    # The name of the adapter, which only a state dict of the whole model has.
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)


class Found(NamedTuple):
    """The content of an adapter's file, by names without PEFT's wrappers.

    Attributes:
      adapters: module → {"A", "B", "magnitude_vector", "B.bias": name in the file}.
      whole: name of a tensor of the model → name in the file.
    """

    adapters: dict[str, dict[str, str]]
    whole: dict[str, str]


def found_in(names: Iterable[str]) -> Found:
    """Sorts the names in an adapter's file."""
    adapters: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in names:
        inner = name.removeprefix(_WRAPPERS)
        if match := _ADAPTER.fullmatch(inner):
            part = match["part"] + (".bias" if match["leaf"] == "bias" else "")
            adapters.setdefault(match["module"], {})[part] = name
        elif ".original_module." not in inner:  # the base's own, left in the file
            inner = inner.replace(".base_layer.", ".")
            short = re.sub(r"\.modules_to_save(\.[^.]+(?=\.[^.]+$))?", "", inner)
            if short == inner or short not in whole:
                whole[short] = name
    return Found(adapters, whole)


def find_naming(
    found: Found, architecture: Architecture, tensors: Tensors
) -> tuple[Naming, str]:
    """Finds the naming of the adapter, and the prefix of the encoder's names.

    Raises:
      UserError: some names are not known, or are those of several encoders.
    """
    classes = architecture.num_classes or 1
    headed = dataclasses.replace(architecture, num_classes=classes)
    best: tuple[int, Naming, str, list[str]] | None = None
    for naming in _variants(headed):
        prefixes = [*_prefixes(found.adapters, naming)]
        prefix = max(dict.fromkeys(prefixes), key=prefixes.count, default="")
        unknown = [*_unknown(found, naming, prefix)]
        if best is None or len(unknown) < best[0]:
            best = len(unknown), naming, prefix, unknown
    assert best is not None
    _, naming, prefix, unknown = best
    if unknown:
        known = shared_names([prefix + name for name in naming.leaves])
        known += shared_names([prefix + name for name in naming.modules])
        listed = [
            f"{plain(name)}{_hint(name, known)}" for name in shared_names(unknown)
        ]
        raise UserError(
            f"{tensors.path} changes {len(unknown)} modules that this model (as "
            f"{naming.title}, {architecture.depth} blocks) does not have: "
            f"{shortened(listed)}. Pass the model that it was trained on as base= (in "
            "commands --base=); known are the names of timm and of transformers 4 and 5"
        )
    return naming, prefix


def _hint(name: str, known: Sequence[str]) -> str:
    found = [choice for choice in nearest(name, known, 1) if choice != name]
    return f" (nearest: {found[0]})" if found else ""


def _variants(a: Architecture) -> Iterator[Naming]:
    """Yields the namings with the heads that a file may have in place of the base's."""
    yield from namings(a)
    if a.distillation_token:
        other = not a.distillation_head
        changed = dataclasses.replace(a, distillation_head=other, pre_logits=0)
        yield from (n for n in namings(changed) if n.family is not None)


def _prefixes(names: Iterable[str], naming: Naming) -> Iterator[str]:
    modules = naming.modules
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            inner = ".".join(parts[i:])
            if inner in modules and targets_of(modules[inner]):
                yield "".join(f"{part}." for part in parts[:i])
                break


def _unknown(found: Found, naming: Naming, prefix: str) -> Iterator[str]:
    modules, leaves = naming.modules, naming.leaves
    for known, names in ((modules, found.adapters), (leaves, found.whole)):
        yield from (name for name in names if inner_name(name, known, prefix) is None)


def inner_name(name: str, known: Mapping[str, Row], prefix: str) -> str | None:
    """Returns the naming's name; None if it has none. A head lies at any level."""
    inner = name.removeprefix(prefix)
    if name.startswith(prefix) and inner in known:
        return inner
    ends = (name.removeprefix(prefix[:i]) for i in range(len(prefix)))
    heads = (end for end in ends if end in known and _is_head(known[end]))
    return next(heads, None)


def _is_head(row: Row) -> bool:
    return row.ours[0].startswith("head")


def with_head(
    naming: Naming,
    a: Architecture,
    tensors: Tensors,
    found: Found,
    prefix: str,
) -> Architecture:
    """Returns the architecture with the head in the file, if there is one.

    A classifier of transformers has parts of its encoder only: no tanh layer, no
    attention pooling.
    """
    leaves = naming.leaves
    heads = {
        leaves[inner].ours[0]: tensors.specs[place].shape
        for name, place in found.whole.items()
        if (inner := inner_name(name, leaves, prefix)) and _is_head(leaves[inner])
    }
    shape = heads.get("head/kernel", ())
    if len(shape) != 2:
        return a
    changes: dict[str, Any] = {"num_classes": shape[0]}
    if naming.family is not None:
        changes |= {"pre_logits": 0}
        if a.distillation_token:
            changes["distillation_head"] = "head_distillation/kernel" in heads
        if shape[1] == 2 * a.width and a.pooling == "cls":
            changes["pooling"] = "cls_gap"
        if a.pooling == "map":
            changes["pooling"] = "gap"
    return dataclasses.replace(a, **changes)
