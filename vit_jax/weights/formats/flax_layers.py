"""Rows of Flax layers and readers of their shapes, shared by Google's two formats."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.geometry import difference
from vit_jax.weights.formats.heads import FLAX, find_head
from vit_jax.weights.formats.layout import (
    BESIDE,
    NO_HINTS,
    SAME,
    Hints,
    Layout,
    Piece,
    Reading,
    Row,
    Shapes,
    positions,
    reshaped,
    unnamed_kinds,
)
from vit_jax.weights.formats.meaning import usual_outputs
from vit_jax.weights.formats.prefixes import anchors, find_prefix
from vit_jax.weights.formats.shapes import numbers, sizes
from vit_jax.words import times

BLOCK = "Transformer/encoderblock_"
DENSE = ("kernel", "bias")
NORM = ("scale", "bias")

_HEADS = ("head/kernel", "head/bias")
# With a prefix, such as that of an optimizer, a train state or the image tower of two,
# names without it are not part of the model, except for a head.
ANCHORS = anchors(
    stem=r"(?:conv_root|embedding|stem)/kernel$",
    blocks=r"(?:conv_root|embedding|stem|Transformer|Mixer|MixerBlock_\d+)/",
    separator="/",
)
_EPSILON = 1e-6


class Numbering(NamedTuple):
    """The names of the parts of an encoder block."""

    norm1: str
    attention: str
    norm2: str
    mlp: str


# Flax before Linen numbered all children of a module together, Linen each kind.
PRE_LINEN = Numbering(
    "LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
)
LINEN = Numbering(
    "LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"
)


def renumbering(before: Numbering, after: Numbering) -> list[tuple[str, str]]:
    """Lists the renames that change the numbers in encoder blocks, for `renamed`."""
    return [
        (rf"^({BLOCK}\d+)/{old}/", rf"\1/{new}/")
        for old, new in zip(before, after, strict=True)
        if old != new
    ]


def inner_names(names: Iterable[str]) -> list[str]:
    """Removes the outer prefix from the names that have it, and drops all others."""
    names = list(names)
    prefix = find_prefix(names, ANCHORS)
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def inner_pieces(
    specs: Mapping[str, Spec], hints: Hints = NO_HINTS
) -> dict[str, Piece]:
    """Removes the outer prefix; finds the names with it, and a head without it."""
    prefix = find_prefix(specs, ANCHORS, hints.prefix)
    widths = (
        specs[name].shape[-1:]
        for layer in ("pre_logits", "embedding", "stem")
        if (name := f"{prefix}{layer}/kernel") in specs
    )
    width = next((width[0] for width in widths if width), None)
    found = find_head(specs, prefix, _HEADS, width, FLAX)
    return found.pieces | {
        name.removeprefix(prefix): Piece(name)
        for name in specs
        if name.startswith(prefix) and name not in found.skipped
    }


def renamed(
    pieces: Mapping[str, Piece], renames: Sequence[tuple[str, str]]
) -> dict[str, Piece]:
    """Applies each (pattern, replacement) in turn to the names of pieces.

    A name that would collide with another stays unchanged, and is later reported as
    unexpected.
    """
    result: dict[str, Piece] = {}
    for name, piece in pieces.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        taken = new in result or (new != name and new in pieces)
        result[name if taken else new] = piece
    return result


def layer(theirs: str, ours: str, leaves: Sequence[str], layout=SAME) -> list[Row]:
    return [Row(f"{theirs}/{leaf}", (f"{ours}/{leaf}",), layout) for leaf in leaves]


def attention(theirs: str, ours: str, width: int, num_heads: int) -> list[Row]:
    """Lists the rows of projections into heads [d, h, k] and out of them [h, k, d]."""
    k = width // num_heads
    into, out = (width, num_heads, k), (num_heads, k, width)
    layouts: dict[str, Layout] = {}
    for name in ("query", "key", "value"):
        layouts[f"{name}/kernel"] = reshaped((width, width), into)
        layouts[f"{name}/bias"] = reshaped((width,), into[1:])
    layouts |= {"out/kernel": reshaped((width, width), out), "out/bias": SAME}
    return [
        Row(f"{theirs}/{leaf}", (f"{ours}/{leaf}",), layout)
        for leaf, layout in layouts.items()
    ]


def mlp(theirs: str, ours: str) -> list[Row]:
    first, second = (
        layer(f"{theirs}/Dense_{i}", f"{ours}/fc{i + 1}", DENSE) for i in range(2)
    )
    return first + second


# Kind of MLP → its rows in a block.
MLPS = {"plain": mlp}


def encoder(a: Architecture, numbering: Numbering) -> list[Row]:
    """Lists the rows of everything but positions, trunk and MAP head."""
    rows = layer("embedding", "patch_embed", DENSE)
    if a.class_token:
        rows.append(Row("cls", ("cls",), SAME))
    for i in range(a.depth):
        theirs, ours = f"{BLOCK}{i}", f"blocks_{i:02d}"
        rows += layer(f"{theirs}/{numbering.norm1}", f"{ours}/norm1", NORM)
        rows += attention(
            f"{theirs}/{numbering.attention}", f"{ours}/attention", a.width, a.num_heads
        )
        rows += layer(f"{theirs}/{numbering.norm2}", f"{ours}/norm2", NORM)
        rows += MLPS[a.mlp_type](f"{theirs}/{numbering.mlp}", f"{ours}/mlp")
    rows += layer("Transformer/encoder_norm", "norm", NORM)
    if a.pre_logits:
        rows += layer("pre_logits", "pre_logits", DENSE)
    return rows + head(a)


def position_row(theirs: str, a: Architecture) -> Row:
    """Makes the row of positions, with the class token's first if it has one."""
    prefix = ("pos_embed_prefix",) if a.class_token_position else ()
    return Row(theirs, (*prefix, "pos_embed"), positions(a.grid, len(prefix)))


def head(a: ViTOrMixer) -> list[Row]:
    return layer("head", "head", DENSE) if a.num_classes else []


def encoder_fields(
    shapes: Shapes, numbering: Numbering, kernel: tuple[int, ...]
) -> dict[str, Any]:
    """Derives fields of `Architecture` from the shapes of an encoder's tensors.

    `kernel` is the shape of the patch embedding's kernel.
    """
    query, hidden = sizes(
        shapes,
        {
            of_any(shapes, BLOCK, f"{numbering.attention}/query/kernel"): 3,
            of_any(shapes, BLOCK, f"{numbering.mlp}/Dense_0/kernel"): 2,
        },
    )
    return {
        "width": kernel[3],
        "depth": len(numbers(shapes, BLOCK, "/")),
        "mlp_dim": hidden[1],
        "num_heads": query[1],
        "num_classes": outputs(shapes, "head"),
        "pre_logits": outputs(shapes, "pre_logits"),
    }


def outputs(shapes: Shapes, name: str) -> int:
    """Returns the output width of a dense layer; 0 if there is no such layer."""
    shape = shapes.get(f"{name}/kernel") or shapes.get(f"{name}/bias") or (0,)
    return shape[-1]


def of_any(shapes: Shapes, start: str, part: str) -> str:
    """Returns the name of a part in the first block that has it.

    All blocks have the same shapes. A part that is missing in one block is thus
    reported together with all other problems.
    """
    names = [f"{start}{i}/{part}" for i in numbers(shapes, start, "/")]
    return next((name for name in names if name in shapes), f"{start}0/{part}")


def reading(
    architecture: ViTOrMixer,
    hints: Hints,
    eval_transform: str,
    assumed: tuple[str, ...] = (),
) -> Reading:
    """Adds preprocessing, position resizing and outputs of Google's families."""
    inputs = {
        "image_size": architecture.image_size,
        "channels": architecture.channels,
    }
    if hints.preprocessing:
        preprocessing = dataclasses.replace(hints.preprocessing, **inputs)
    else:
        preprocessing = Preprocessing(**inputs, eval_transform=eval_transform)
    return Reading(
        architecture,
        preprocessing,
        assumed=assumed,
        posemb_resize="google",
        outputs=usual_outputs(architecture.num_classes),
    )


def inexpressible_in_both(a: Architecture) -> list[str]:
    """Lists phrases for the features that neither of Google's formats can express."""
    has = {
        "a distillation token": a.distillation_token,
        "register tokens": a.registers,
        "LayerScale": a.layer_scale,
        "queries, keys and values without bias": not a.qkv_bias,
        "the norm after pooling": a.norm == "after_pool",
        "a class token with pooling that ignores it": (
            a.class_token and a.pooling not in ("cls", "cls_gap")
        ),
        BESIDE: a.pooling == "cls_gap",
    }
    phrases = [phrase for phrase, present in has.items() if present]
    return phrases + unnamed_kinds(a, MLPS)


def looks_square(a: ViTOrMixer) -> list[str]:
    """Names a grid that is not square but has as many patches as a square one."""
    height, width = a.grid
    if height == width or math.isqrt(height * width) ** 2 != height * width:
        return []
    return [f"a grid of {times(a.grid)} patches, which looks like a square one"]


def lost_in_both(
    a: ViTOrMixer, preprocessing: Preprocessing, eval_transform: str
) -> list[str]:
    """Lists sentences about facts that readers of either format assume differently."""
    (height, width), half = a.grid, (0.5,) * a.channels
    differs = {
        f"readers of the file use GELU tanh, where this model has {a.gelu}: expect "
        "slightly different outputs": a.gelu != "tanh",
        f"readers of the file use {_EPSILON:g} as the LayerNorm's epsilon, where this "
        f"model has {a.layernorm_epsilon:g}: expect slightly different outputs": (
            a.layernorm_epsilon != _EPSILON
        ),
        "readers of the file normalise images with mean 0.5 and standard deviation "
        f"0.5, where this model has {preprocessing.mean} and {preprocessing.std}: "
        "normalise them as here, or load the model with fold_normalization=True before "
        "it is saved": ((preprocessing.mean, preprocessing.std) != (half, half)),
        f"readers of the file preprocess images with {eval_transform!r}, where this "
        f"model was evaluated with {preprocessing.eval_transform!r} "
        f"({difference(eval_transform, preprocessing)}): expect slightly different "
        "predictions": preprocessing.eval_transform != eval_transform,
        f"the grid of {times(a.grid)} patches is not square, so readers of the file "
        "need the image size (trained_image_size)": height != width,
    }
    return [sentence for sentence, present in differs.items() if present]
