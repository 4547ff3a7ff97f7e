"""Rows and checks shared by the layouts of PyTorch's libraries."""

import re
from collections.abc import Mapping, Sequence

from vit_jax.errors import UserError
from vit_jax.models import VARIANTS
from vit_jax.weights.formats.layout import (
    OIHW,
    SAME,
    TRANSPOSED,
    Hints,
    Layout,
    Row,
    Shapes,
    split,
)
from vit_jax.weights.formats.shapes import numbers
from vit_jax.words import plain

QKV = ("query", "key", "value")
_HEAD_WIDTH = 64


def linear(theirs: str, ours: str) -> list[Row]:
    return _layer(theirs, ours, ("kernel", TRANSPOSED), ("bias", SAME))


def linear_without_bias(theirs: str, ours: str) -> list[Row]:
    return linear(theirs, ours)[:1]


def conv(theirs: str, ours: str) -> list[Row]:
    return _layer(theirs, ours, ("kernel", OIHW), ("bias", SAME))


def norm(theirs: str, ours: str) -> list[Row]:
    return _layer(theirs, ours, ("scale", SAME), ("bias", SAME))


def fused(theirs: str, ours: str, parts: Sequence[str], joint: str = ".") -> list[Row]:
    """Makes the rows of projections that share one tensor."""

    def row(name: str, leaf: str, layout: Layout) -> Row:
        paths = tuple(f"{ours}/{part}/{leaf}" for part in parts)
        return Row(f"{theirs}{joint}{name}", paths, split(len(parts), layout))

    return [row("weight", "kernel", TRANSPOSED), row("bias", "bias", SAME)]


def outputs(shapes: Shapes, name: str) -> int:
    """Returns the first extent of a tensor, which is a layer's width; 0 if absent."""
    return next(iter(shapes.get(name, ())), 0)


def features(shapes: Shapes, patterns: Mapping[str, str]) -> list[str]:
    """Lists features that parameter names reveal, each with one of these names.

    Args:
      shapes: the table's name → shape.
      patterns: {pattern of a name: feature with such a parameter}.
    """
    found = {}
    for pattern, feature in patterns.items():
        names = (name for name in shapes if re.match(pattern, name))
        if (name := next(names, None)) is not None:
            found.setdefault(feature, name)
    return [f"{feature} ({plain(name)})" for feature, name in found.items()]


def refuse(unsupported: Sequence[str]) -> None:
    """Raises UserError if there are features that no `Architecture` expresses."""
    if unsupported:
        raise UserError(
            "this model has features that vit_jax does not support: "
            f"{'; '.join(unsupported)}. Use another model"
        )


def heads_by_sizes(width: int, depth: int, mlp_dim: int) -> tuple[int, str]:
    """Guesses the number of attention heads from the model's size.

    Returns:
      The number, and a sentence that states the assumption.

    Raises:
      UserError: neither a known variant nor the width suggests a number.
    """
    for name, size in VARIANTS.items():
        if size[:3] == (width, depth, mlp_dim):
            return size.num_heads, (
                f"assumed {size.num_heads} attention heads, the number in ViT-{name}; "
                "if that is wrong, pass num_heads="
            )
    if width % _HEAD_WIDTH:
        raise UserError(
            f"the file does not record the number of attention heads, and the width "
            f"{width} is not a multiple of {_HEAD_WIDTH}: pass num_heads= to "
            "vit_jax.load, put the model's config.json beside the file, or write a "
            "file that records it with python -m vit_jax.convert --num_heads=…"
        )
    heads = width // _HEAD_WIDTH
    return heads, (
        f"assumed {heads} attention heads of {_HEAD_WIDTH} channels each; if that is "
        "wrong, pass num_heads="
    )


def heads_of(
    hints: Hints, size: tuple[int, int, int], told: int | None = None
) -> tuple[int, list[str]]:
    """Determines the number of attention heads; also lists assumptions.

    Args:
      hints: has the caller's number.
      size: width, depth and width of the MLPs.
      told: the number in a companion file; None if there is none.
    """
    width = size[0]
    if hints.num_heads:
        return check_heads(hints.num_heads, width, "num_heads="), []
    if told:
        return check_heads(told, width, "the companion file"), []
    number, sentence = heads_by_sizes(*size)
    return number, [sentence]


def of_any_block(shapes: Shapes, start: str, part: str) -> str:
    """Returns the name of a part in the first block that has it.

    All blocks have the same shapes. A part that is missing in one block is thus
    reported together with all other problems.
    """
    names = [f"{start}{i}.{part}" for i in numbers(shapes, start, ".")]
    return next((name for name in names if name in shapes), f"{start}0.{part}")


def check_heads(num_heads: int, width: int, said_by: str) -> int:
    """Returns the number; raises UserError if the width is not a multiple of it."""
    if num_heads < 1 or width % num_heads:
        raise UserError(
            f"{said_by} says {num_heads} attention heads, but the width {width} of the "
            "weights is not a multiple of that"
        )
    return num_heads


def _layer(theirs: str, ours: str, *leaves: tuple[str, Layout]) -> list[Row]:
    return [
        Row(f"{theirs}.{name}", (f"{ours}/{leaf}",), layout)
        for name, (leaf, layout) in zip(("weight", "bias"), leaves, strict=True)
    ]
