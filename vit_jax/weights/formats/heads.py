"""The classifier on top of a model, whatever its modules are called.

A format's table has names for a head. People replace it: by a module of another name
(fc, head.1, classifier.1), by one outside of the encoder, or by something that no table
expresses, such as two layers. In the last case the model is read without a head.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from vit_jax.weights.files.contents import Spec
from vit_jax.weights.files.entries import is_above, is_head, says_head
from vit_jax.weights.formats.layout import Piece


class Leaves(NamedTuple):
    """How a library stores a linear layer.

    Attributes:
      weight: name of the matrix.
      input: its axis that has the extent of the input.
      separator: character between the parts of a name.
    """

    weight: str
    input: int
    separator: str


PYTORCH = Leaves("weight", 1, ".")
FLAX = Leaves("kernel", 0, "/")


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

    A head with the table's own names is used wherever it lies: with the prefix of the
    model's other names, or, as in a classifier that wraps an encoder, with the
    beginning of it. Whether it fits shows later, when shapes are compared. Otherwise a
    module whose name says that it is a head is used if all that it holds is a linear
    layer of this width.

    Args:
      specs: the tensors of the file.
      prefix: prefix of the model's names, such as "module.backbone." or "params/img/".
      own: the table's names of heads, weight and bias of the main one first.
      width: number of features that the head reads; None if unknown.
      leaves: how a linear layer is stored.
    """
    separator = leaves.separator
    parts = prefix.split(separator)[:-1] if prefix else []
    for depth in reversed(range(len(parts) + 1)):
        level = "".join(part + separator for part in parts[:depth])
        inner = level == prefix
        if has_own := [name for name in own if level + name in specs]:
            if _reads_more(specs, level + own[0], width, leaves):
                continue
            found = {} if inner else {n: Piece(level + n, beside=True) for n in has_own}
        else:
            linear = _linear(specs, level, prefix, width, leaves)
            if linear is None:
                continue
            found = {
                name: Piece(place, beside=not inner)
                for name, place in zip(own[:2], linear, strict=True)
            }
        modules = {name.partition(separator)[0] for name in has_own if inner}
        return Head(found, _above(specs, prefix, separator, modules))
    return Head({}, _above(specs, prefix, separator))


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
    return [n for n in names if (m := modules.match(n)) and says_head(m[2])]


def _linear(
    specs: Mapping[str, Spec],
    level: str,
    prefix: str,
    width: int | None,
    leaves: Leaves,
) -> tuple[str, str] | None:
    """Returns weight and bias of the only head of this level that is a linear layer."""
    modules: dict[str, list[str]] = {}
    for name in specs:
        inside = level != prefix and name.startswith(prefix)
        module, dot, _ = name.removeprefix(level).partition(leaves.separator)
        if name.startswith(level) and not inside and dot and is_head(module):
            modules.setdefault(module, []).append(name)
    fitting = []
    for names in modules.values():
        weights = [n for n in names if n.endswith(leaves.separator + leaves.weight)]
        if len(names) != 2 or len(weights) != 1:
            continue
        [weight], [bias] = weights, [name for name in names if name not in weights]
        shape = specs[weight].shape
        fits = len(shape) == 2 and width in (None, shape[leaves.input])
        named = bias == weight.removesuffix(leaves.weight) + "bias"
        if named and fits and specs[bias].shape == (shape[1 - leaves.input],):
            fitting.append((weight, bias))
    return fitting[0] if len(fitting) == 1 else None


def _reads_more(
    specs: Mapping[str, Spec], weight: str, width: int | None, leaves: Leaves
) -> bool:
    """Returns whether a head reads several features of the encoder, joined.

    DINOv2's linear classifiers read the class token and the mean of the patches.
    """
    shape = specs[weight].shape if weight in specs else ()
    if len(shape) != 2 or not width:
        return False
    return shape[leaves.input] > width and shape[leaves.input] % width == 0


def _above(
    specs: Mapping[str, Spec], prefix: str, separator: str, read: Collection[str] = ()
) -> set[str]:
    """Returns the names in modules above the encoder that are not read."""
    return {
        name
        for name in specs
        if name.startswith(prefix)
        and (module := name.removeprefix(prefix).partition(separator)[0]) not in read
        and is_above(module)
    }
