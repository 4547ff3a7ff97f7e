"""The classifier on top of a model, whatever its modules are called.

A format's table has names for a head. People replace it: by a module of another name
(fc, head.1, classifier.1), by one outside of the encoder, or by something that no table
expresses, such as two layers. In the last case the model is read without a head: a head
that is only half read would give other numbers.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from vit_jax.weights.files.contents import Spec
from vit_jax.weights.files.entries import (
    is_above,
    is_head,
    is_neck,
    may_lie_between,
    says_head,
)
from vit_jax.weights.formats.layout import Piece


class Leaves(NamedTuple):
    """How a library stores a linear layer.

    Attributes:
      weight: name of the matrix.
      input: its axis that has the extent of the input.
      separator: character between the parts of a name.
      bare: whether a layer without a bias is usual, and no sign of a damaged file.
    """

    weight: str
    input: int
    separator: str
    bare: bool


PYTORCH = Leaves("weight", 1, ".", bare=True)
FLAX = Leaves("kernel", 0, "/", bare=False)
_LARGEST_LAYER = 8  # tensors of a layer that may lie before a head


class Head(NamedTuple):
    """The head of a file.

    Attributes:
      pieces: the table's name → place in the file, where that has another name.
      skipped: names in the file that the table must not see: the places of `pieces`,
        and modules above the encoder that are not understood.
    """

    pieces: dict[str, Piece]
    skipped: set[str]


def find_head(
    specs: Mapping[str, Spec],
    prefix: str,
    own: Sequence[str],
    width: int | None,
    leaves: Leaves = PYTORCH,
) -> Head:
    """Finds the head of a model.

    A head is read if it is one linear layer on the features of the encoder, without a
    layer in between. Of several, the outermost is the model's: a classifier that wraps
    an encoder leaves the encoder's own head unused. A head with the table's own names
    is used whatever its width; whether it fits shows later, when shapes are compared.

    Args:
      specs: the tensors of the file.
      prefix: prefix of the model's names, such as "module.backbone." or "params/img/".
      own: the table's names of heads, weight and bias of the main one first.
      width: number of features that the head reads; None if unknown.
      leaves: how a linear layer is stored.
    """
    separator = leaves.separator
    parts = prefix.split(separator)[:-1] if prefix else []
    for depth in range(len(parts)):
        level = "".join(part + separator for part in parts[:depth])
        modules = _modules(specs, level, prefix, separator)
        heads = [m for m in modules if is_head(m) or _follows(m, level, prefix)]
        if not heads:
            continue
        places = {name: level + name for name in _own(specs, level, own, width, leaves)}
        if {name.partition(separator)[0] for name in places} != {*heads}:
            linear = _linear(specs, modules[heads[0]], width, leaves)
            places = dict(zip(own, linear, strict=False)) if len(heads) == 1 else {}
        between = (m for m in modules if m not in heads and may_lie_between(m))
        if any(_reads(specs, modules[module], width, leaves) for module in between):
            places = {}
        inner = specs.get(prefix + own[0])
        classes = inner.shape[1 - leaves.input] if inner and inner.shape[1:] else 0
        stacked = any(_reads(specs, modules[m], classes, leaves) for m in heads)
        if places or stacked or not inner:
            pieces = {name: Piece(place, beside=True) for name, place in places.items()}
            return Head(pieces, _above(specs, prefix, separator))
        break  # such as a projection beside a classifier
    return _inner(specs, prefix, own, width, leaves)


def _inner(
    specs: Mapping[str, Spec],
    prefix: str,
    own: Sequence[str],
    width: int | None,
    leaves: Leaves,
) -> Head:
    """Finds a head among the names of the encoder."""
    separator = leaves.separator
    modules = _modules(specs, prefix, prefix, separator)
    heads = {
        module: _linear(specs, names, width, leaves)
        for module, names in modules.items()
        if is_head(module)
    }
    if any(prefix + name in specs for name in own):
        named = _own(specs, prefix, own, width, leaves)
        read = {name.partition(separator)[0] for name in named}
        # With another linear layer beside it, it is open which one is the head.
        if any(linear for module, linear in heads.items() if module not in read):
            read = set()
        return Head({}, _above(specs, prefix, separator, read))
    necks = [names for module, names in modules.items() if is_neck(module)]
    alone = len(heads) == 1 and not any(_reads(specs, n, width, leaves) for n in necks)
    [linear] = heads.values() if alone else [()]
    pieces = {n: Piece(place) for n, place in zip(own, linear, strict=False)}
    return Head(pieces, _above(specs, prefix, separator))


def of_heads(names: Iterable[str], prefix: str = "") -> list[str]:
    """Selects the names of modules that are called like a head of any kind.

    Args:
      names: names in a file.
      prefix: that of the model's names; a head has it, or the beginning of it.
    """
    levels = {prefix[: match.end()] for match in re.finditer("[./]", prefix)} | {""}
    modules = re.compile(
        f"({'|'.join(sorted(map(re.escape, levels), reverse=True))})([^./]+)[./]"
    )
    return [
        name
        for name in names
        if (match := modules.match(name))
        and (says_head(match[2]) or _follows(match[2], match[1], prefix))
    ]


def _modules(
    specs: Iterable[str], level: str, prefix: str, separator: str
) -> dict[str, list[str]]:
    """Groups names by module, those that begin with `level` but not with `prefix`.

    If both are the same, those of the encoder are grouped.
    """
    modules: dict[str, list[str]] = {}
    for name in specs:
        inside = level != prefix and name.startswith(prefix)
        module, dot, _ = name.removeprefix(level).partition(separator)
        if name.startswith(level) and not inside and dot:
            modules.setdefault(module, []).append(name)
    return modules


def _follows(module: str, level: str, prefix: str) -> bool:
    """Returns whether a module comes after the encoder in a Sequential of PyTorch."""
    encoder = re.split("[./]", prefix.removeprefix(level))[0]
    numbers = module.isdecimal() and encoder.isdecimal()
    return numbers and int(module) > int(encoder)


def _linear(
    specs: Mapping[str, Spec], names: Sequence[str], width: int | None, leaves: Leaves
) -> tuple[str, ...]:
    """Returns weight and bias if the names are those of a linear layer; else ()."""
    weights = [n for n in names if n.endswith(leaves.separator + leaves.weight)]
    if len(names) != 2 or len(weights) != 1:
        return ()
    [weight], [bias] = weights, [name for name in names if name not in weights]
    shape = specs[weight].shape
    fits = len(shape) == 2 and width in (None, shape[leaves.input])
    named = bias == weight.removesuffix(leaves.weight) + "bias"
    if named and fits and specs[bias].shape == (shape[1 - leaves.input],):
        return weight, bias
    return ()


def _own(
    specs: Mapping[str, Spec],
    level: str,
    own: Sequence[str],
    width: int | None,
    leaves: Leaves,
) -> list[str]:
    """Returns the table's names of a head at a level; [] if it is of another kind.

    It may not hold anything else, such as the scale of a normalised layer.
    """
    found = [name for name in own if level + name in specs]
    layers = {
        f"{level}{name.rpartition(leaves.separator)[0]}{leaves.separator}"
        for name in found
    }
    held = [name for name in specs if name.startswith(tuple(layers))]
    lacks_bias = leaves.bare and len(found) != 2 * len(layers)
    if len(held) != len(found) or lacks_bias:
        return []
    weights = [spec.shape for n in layers if (spec := specs.get(n + leaves.weight))]
    if any(len(shape) != 2 for shape in weights):
        return []
    # DINOv2's linear classifiers read the class token and the mean of the patches.
    several = any(
        width and shape[leaves.input] > width and shape[leaves.input] % width == 0
        for shape in weights
    )
    return [] if several else found


def _reads(
    specs: Mapping[str, Spec], names: Sequence[str], width: int | None, leaves: Leaves
) -> bool:
    """Returns whether a module could be a layer that reads so many features."""
    if len(names) > _LARGEST_LAYER or not width:
        return False
    shapes = [specs[name].shape for name in names]
    return any(
        shape == (width,) or (len(shape) == 2 and shape[leaves.input] == width)
        for shape in shapes
    )


def _above(
    specs: Mapping[str, Spec], prefix: str, separator: str, read: Collection[str] = ()
) -> set[str]:
    """Returns the names in modules above the encoder that are not read."""
    inner = {name: name.removeprefix(prefix).partition(separator) for name in specs}
    return {
        name
        for name, (module, is_module, _) in inner.items()
        if name.startswith(prefix)
        and module not in read
        and is_above(module)
        and (is_module or not says_head(module))
    }
