"""torchvision's format: the Vision Transformer of torchvision.models.

The names are those since version 0.14 (github.com/pytorch/vision); those of the MLPs in
older versions are read too.
"""

import re
from collections.abc import Iterable, Mapping

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.bare import (
    EPSILON,
    Usual,
    assume,
    lost,
    resized_and_cropped,
)
from vit_jax.weights.formats.heads import find_head
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    SAME,
    Format,
    Hints,
    Piece,
    Reading,
    Row,
    Shapes,
    positions,
    unnamed_kinds,
)
from vit_jax.weights.formats.prefixes import anchors, find_prefix
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes
from vit_jax.weights.formats.torch_layers import (
    QKV,
    conv,
    features,
    fused,
    heads_of,
    linear,
    norm,
    of_any_block,
    outputs,
    refuse,
)
from vit_jax.words import times

_LAYER = "encoder.layers.encoder_layer_"
_ANCHORS = anchors(
    stem=r"conv_proj\.", blocks=r"encoder\.layers\.encoder_layer_\d+\.\w+"
)
_RENAMES = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))
_HEADS = ("heads.head.weight", "heads.head.bias")
_UNSUPPORTED = {
    r"conv_proj\.(conv_|\d)": "a stem of several convolutions",
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Model (width, depth) at 224 pixels → length of the shorter side before the crop.
_RESIZED = {(1024, 24): 242}
_USUALLY_RESIZED = 256


def _recognises(names: Iterable[str]) -> bool:
    return any(_ANCHORS.blocks.match(name) for name in names)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    prefix = find_prefix(specs, _ANCHORS, hints.prefix)
    layers = ("heads.pre_logits", "conv_proj")
    widths = (specs.get(f"{prefix}{layer}.weight") for layer in layers)
    width = next((spec.shape[0] for spec in widths if spec and spec.shape), None)
    head = find_head(specs, prefix, _HEADS, width)
    pieces = dict(head.pieces)
    for name in specs:
        if not name.startswith(prefix) or name in head.skipped:
            continue
        inner = name.removeprefix(prefix)
        for pattern, replacement in _RENAMES:
            inner = re.sub(pattern, replacement, inner)
        # If two names mean one tensor, the second stays unchanged and is reported.
        pieces[name if inner in pieces else inner] = Piece(name)
    return pieces


def _read(shapes: Shapes, hints: Hints) -> Reading:
    refuse(features(shapes, _UNSUPPORTED))
    kernel, position, hidden = sizes(
        shapes,
        {
            "conv_proj.weight": 4,
            "encoder.pos_embedding": 3,
            of_any_block(shapes, _LAYER, "mlp.0.weight"): 2,
        },
    )
    width, depth, mlp_dim = kernel[0], len(numbers(shapes, _LAYER, ".")), hidden[0]
    patch_size = kernel[2], kernel[3]
    num_heads, assumed = heads_of(hints, (width, depth, mlp_dim))
    _, grid = grid_of(
        "encoder.pos_embedding", position[1], [1], patch_size, hints, None, assumed
    )
    architecture = Architecture(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=outputs(shapes, "heads.head.weight"),
        channels=kernel[1],
        pre_logits=outputs(shapes, "heads.pre_logits.weight"),
        gelu="exact",
        layernorm_epsilon=EPSILON,
    )
    return assume(architecture, hints, _usual(architecture), "torchvision", assumed)


def _usual(a: Architecture) -> Usual:
    """Returns the preprocessing of the weights that torchvision published.

    Those for 224 pixels were trained by torchvision, all larger ones are SWAG's.
    """
    if max(a.image_size) > 224:
        surplus, interpolation = 1.0, "bicubic_antialias"
    else:
        shorter = _RESIZED.get((a.width, a.depth), _USUALLY_RESIZED)
        surplus, interpolation = shorter / 224, "bilinear_antialias"
    chain = resized_and_cropped(a.image_size, surplus, interpolation)
    size = times(a.image_size)
    return Usual(_MEAN, _STD, chain, f"its published weights for images of {size}")


def _rows(architecture: ViTOrMixer) -> list[Row]:
    a = architecture
    assert isinstance(a, Architecture)
    rows = [
        Row("class_token", ("cls",), SAME),
        Row(
            "encoder.pos_embedding",
            ("pos_embed_prefix", "pos_embed"),
            positions(a.grid, 1),
        ),
        *conv("conv_proj", "patch_embed"),
    ]
    for i in range(a.depth):
        theirs, ours = f"{_LAYER}{i}", f"blocks_{i:02d}"
        attention = f"{theirs}.self_attention"
        rows += norm(f"{theirs}.ln_1", f"{ours}/norm1")
        rows += fused(f"{attention}.in_proj", f"{ours}/attention", QKV, "_")
        rows += linear(f"{attention}.out_proj", f"{ours}/attention/out")
        rows += norm(f"{theirs}.ln_2", f"{ours}/norm2")
        rows += _MLPS[a.mlp_type](f"{theirs}.mlp", f"{ours}/mlp")
    rows += norm("encoder.ln", "norm")
    if a.pre_logits:
        rows += linear("heads.pre_logits", "pre_logits")
    if a.num_classes:
        rows += linear("heads.head", "head")
    return rows


def _mlp(theirs: str, ours: str) -> list[Row]:
    return linear(f"{theirs}.0", f"{ours}/fc1") + linear(f"{theirs}.3", f"{ours}/fc2")


# Kind of MLP → its rows in a layer.
_MLPS = {"plain": _mlp}


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    a = architecture
    if isinstance(a, MixerArchitecture):
        return ["an MLP-Mixer"]
    has = {
        "sin-cos positions": a.posemb != "learned",
        "a trunk": a.trunk is not None,
        "register tokens": a.registers,
        "LayerScale": a.layer_scale,
        "a distillation token": a.distillation_token,
        "pooling other than the class token": a.pooling != "cls",
        "a class token without a position": (
            a.class_token and not a.class_token_position
        ),
        "the norm after pooling": a.norm == "after_pool",
        "queries, keys and values without bias": not a.qkv_bias,
        "GELU tanh": a.gelu != "exact",
        f"images of {a.channels} channels": a.channels != 3,
        "images or patches that are not square": (
            len(set(a.image_size)) > 1 or len(set(a.patch_size)) > 1
        ),
    }
    phrases = [phrase for phrase, present in has.items() if present]
    return phrases + unnamed_kinds(a, _MLPS)


def _lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    assert isinstance(architecture, Architecture)
    return lost(architecture, preprocessing, _usual(architecture), "torchvision")


FORMAT = Format(
    name="torchvision",
    title="torchvision's",
    anchors=_ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=_lost,
)
