"""mmpretrain's format: its VisionTransformer, DistilledVisionTransformer and DeiT3.

The names are those of mmpretrain 1.2 (github.com/open-mmlab/mmpretrain), of which
mmcls is the former name. A classifier's file has the encoder's names behind
"backbone."; a file of the encoder alone lacks that.
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
    BESIDE,
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

_P = "backbone."
_LAYER = f"{_P}layers."
_STEM = r"patch_embed\.projection\."
_BLOCK = r"layers\.\d+\.(?:attn\.qkv|attn\.proj|ffn\.|ln[12])\b"
_ANCHORS = anchors(stem=rf"(?:backbone\.)?{_STEM}", blocks=rf"(?:backbone\.)?{_BLOCK}")
_ENCODER = re.compile(rf"(backbone\.|)(?:{_STEM}|{_BLOCK})")
_RENAMES = (
    # LayerScale of mmcv's MLP, in place of mmpretrain's.
    (r"\.gamma2\.scale$", ".gamma2.weight"),
    # A norm's name has a number only if a module has several.
    (r"^norm\.", "ln1."),
)
_HEADS = tuple(
    f"head.layers.{head}.{leaf}"
    for head in ("head", "head_dist")
    for leaf in ("weight", "bias")
)
# Masks, and the target of masked image modelling, which are not read.
_LEFT_OUT = re.compile(r"(?:mask_token$|target_generator\.|data_preprocessor\.)")
_UNSUPPORTED = {
    r"backbone\.pre_norm\.": "a norm before the blocks (CLIP)",
    r"backbone\.patch_embed\.norm\.": "a norm after the patch embedding",
    r".*rel(ative)?_pos": "relative position biases",
    r".*rope": "rotary position embeddings",
    r"backbone\.layers\.\d+\.ffn\.w\d": "gated MLPs (SwiGLU)",
    r"backbone\.layers\.\d+\.attn\.[qkv]_bias": (
        "separate biases of queries, keys and values (BEiT)"
    ),
    r"backbone\.layers\.\d+\.(downsample|blocks)\b": "stages of several resolutions",
    r"backbone\.(channel_reduction|prompt)": "further layers in the encoder",
}
# (width, depth, MLP's width) → attention heads of a size that only mmpretrain has.
_OWN_HEADS = {(768, 8, 2304): 8}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5,) * 3, (0.5,) * 3


def _recognises(names: Iterable[str]) -> bool:
    names = list(names)
    return all(any(p.match(name) for name in names) for p in _ANCHORS)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    wrapper = find_prefix(specs, _ANCHORS, hints.prefix)
    unwrapped = [
        name.removeprefix(wrapper) for name in specs if name.startswith(wrapper)
    ]
    encoder = next(match[1] for name in unwrapped if (match := _ENCODER.match(name)))
    head = find_head(specs, wrapper, _HEADS, _features(specs, wrapper, encoder))
    pieces = dict(head.pieces)
    for name in unwrapped:
        inner = name.removeprefix(encoder)
        if wrapper + name in head.skipped or _LEFT_OUT.match(inner):
            continue
        if name.startswith(encoder) and not name.startswith("head."):
            for pattern, replacement in _RENAMES:
                inner = re.sub(pattern, replacement, inner)
            inner = _P + inner
        else:
            inner = name
        # If two names mean one tensor, the second stays unchanged and is reported.
        pieces[name if inner in pieces else inner] = Piece(wrapper + name)
    return pieces


def _features(specs: Mapping[str, Spec], wrapper: str, encoder: str) -> int | None:
    """Returns the number of features that the head reads; None if unknown."""
    for layer in ("head.layers.pre_logits", f"{encoder}patch_embed.projection"):
        if spec := specs.get(f"{wrapper}{layer}.weight"):
            return next(iter(spec.shape), None)
    return None


def _read(shapes: Shapes, hints: Hints) -> Reading:
    refuse(features(shapes, _UNSUPPORTED) + _unusual(shapes))
    kernel, position, hidden = sizes(
        shapes,
        {
            f"{_P}patch_embed.projection.weight": 4,
            f"{_P}pos_embed": 3,
            of_any_block(shapes, _LAYER, "ffn.layers.0.0.weight"): 2,
        },
    )
    width, depth, mlp_dim = kernel[0], len(numbers(shapes, _LAYER, ".")), hidden[0]
    patch_size = kernel[2], kernel[3]
    size = width, depth, mlp_dim
    num_heads, assumed = heads_of(hints, size, _OWN_HEADS.get(size))
    class_token = f"{_P}cls_token" in shapes
    distillation = f"{_P}dist_token" in shapes
    tokens = int(class_token) + int(distillation)
    prefix, grid = grid_of(
        "pos_embed", position[1], [tokens, 0], patch_size, hints, None, assumed
    )
    after_pool = f"{_P}ln2.weight" in shapes
    if class_token and not after_pool and not distillation:
        assumed.append(
            "assumed that the head reads the class token, as the file does not say"
        )
    architecture = Architecture(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=outputs(shapes, "head.layers.head.weight"),
        channels=kernel[1],
        pooling="gap" if after_pool or not class_token else "cls",
        class_token=class_token,
        class_token_position=class_token and prefix >= tokens,
        distillation_token=distillation,
        distillation_head=(
            not distillation
            or "head.layers.head_dist.weight" in shapes
            or "head.layers.head.weight" not in shapes
        ),
        layer_scale=any(name.endswith(".gamma1.weight") for name in shapes),
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in shapes),
        norm="after_pool" if after_pool else "before_pool",
        pre_logits=outputs(shapes, "head.layers.pre_logits.weight"),
        gelu="exact",
        layernorm_epsilon=EPSILON,
    )
    return assume(architecture, hints, _usual(architecture), "mmpretrain", assumed)


def _unusual(shapes: Shapes) -> list[str]:
    """Lists features that no `Architecture` has but that names alone do not reveal."""
    norms = {f"{_P}ln1.weight", f"{_P}ln2.weight"} & shapes.keys()
    has = {
        "positions that are not learned (no pos_embed)": f"{_P}pos_embed" not in shapes,
        "norms before and after pooling (ln1 and ln2)": len(norms) == 2,
        "no norm after the blocks (neither ln1 nor ln2)": not norms,
    }
    return [phrase for phrase, present in has.items() if present]


def _usual(a: Architecture) -> Usual:
    """Returns the preprocessing of the published configs.

    Those of plain Vision Transformers have 127.5 as mean and standard deviation, those
    of DeiT and of fine-tuned masked autoencoders have ImageNet's.
    """
    imagenet = a.distillation_token or a.layer_scale or a.norm == "after_pool"
    mean, std = _IMAGENET if imagenet else _HALF
    surplus = 1.0 if max(a.image_size) > 224 else 256 / 224
    chain = resized_and_cropped(a.image_size, surplus, "bicubic_antialias")
    return Usual(mean, std, chain, "its configs for this kind of model")


def _rows(architecture: ViTOrMixer) -> list[Row]:
    a = architecture
    assert isinstance(a, Architecture)
    rows = []
    if a.class_token:
        rows.append(Row(f"{_P}cls_token", ("cls",), SAME))
    if a.distillation_token:
        rows.append(Row(f"{_P}dist_token", ("distillation",), SAME))
    prefix = a.num_position_prefix
    ours = ("pos_embed_prefix", "pos_embed") if prefix else ("pos_embed",)
    rows.append(Row(f"{_P}pos_embed", ours, positions(a.grid, prefix)))
    rows += conv(f"{_P}patch_embed.projection", "patch_embed")
    for i in range(a.depth):
        theirs, ours = f"{_LAYER}{i}", f"blocks_{i:02d}"
        rows += norm(f"{theirs}.ln1", f"{ours}/norm1")
        qkv = fused(f"{theirs}.attn.qkv", f"{ours}/attention", QKV)
        rows += qkv if a.qkv_bias else qkv[:1]
        rows += linear(f"{theirs}.attn.proj", f"{ours}/attention/out")
        rows += norm(f"{theirs}.ln2", f"{ours}/norm2")
        rows += _MLPS[a.mlp_type](f"{theirs}.ffn.layers", f"{ours}/mlp")
        if a.layer_scale:
            scales = ("attn.gamma1", "layer_scale1"), ("ffn.gamma2", "layer_scale2")
            rows += [
                Row(f"{theirs}.{part}.weight", (f"{ours}/{scale}",), SAME)
                for part, scale in scales
            ]
    rows += norm(f"{_P}ln2" if a.norm == "after_pool" else f"{_P}ln1", "norm")
    if a.pre_logits:
        rows += linear("head.layers.pre_logits", "pre_logits")
    if a.num_classes:
        rows += linear("head.layers.head", "head")
        if a.distillation_token and a.distillation_head:
            rows += linear("head.layers.head_dist", "head_distillation")
    return rows


def _mlp(theirs: str, ours: str) -> list[Row]:
    first = linear(f"{theirs}.0.0", f"{ours}/fc1")
    return first + linear(f"{theirs}.1", f"{ours}/fc2")


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
        "attention pooling": a.pooling == "map",
        BESIDE: a.pooling == "cls_gap",
        "GELU tanh": a.gelu != "exact",
        "the norm after pooling of a class token": (
            a.norm == "after_pool" and a.pooling != "gap"
        ),
        "the mean of the patches beside a class token, with the norm before it": (
            a.class_token and a.pooling == "gap" and a.norm != "after_pool"
        ),
        "a distillation token whose head is missing": (
            a.distillation_token and a.distillation_head and not a.num_classes
        ),
        "a class token and a distillation token without positions": (
            a.distillation_token and not a.class_token_position
        ),
    }
    phrases = [phrase for phrase, present in has.items() if present]
    return phrases + unnamed_kinds(a, _MLPS)


def _lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    assert isinstance(architecture, Architecture)
    return lost(architecture, preprocessing, _usual(architecture), "mmpretrain")


FORMAT = Format(
    name="mmpretrain",
    title="mmpretrain's",
    anchors=_ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=_lost,
)
