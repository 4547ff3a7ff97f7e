"""Hugging Face's format: ViT and DeiT of the library transformers.

Files have the names of the modules in version 4, which version 5 still writes. The
names of version 5's modules in memory are read too.
"""

import re
from collections.abc import Iterable, Mapping

from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.companion import of_companions
from vit_jax.weights.formats.heads import find_head
from vit_jax.weights.formats.huggingface_config import (
    HuggingFaceConfig,
    lost,
    read_preprocessing,
)
from vit_jax.weights.formats.huggingface_config import companions as companions
from vit_jax.weights.formats.huggingface_mae import (
    DECODER_TABLE,
    decoder_pieces,
    has_decoder,
)
from vit_jax.weights.formats.labels import from_tables
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
from vit_jax.weights.formats.meaning import read_outputs
from vit_jax.weights.formats.prefixes import anchors, find_prefix
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes
from vit_jax.weights.formats.torch_layers import (
    check_heads,
    conv,
    features,
    heads_by_sizes,
    linear,
    linear_without_bias,
    norm,
    outputs,
    refuse,
)

_PATCHES = "embeddings.patch_embeddings.projection"
_LAYER = "encoder.layer."
_STEM, _BLOCK = rf"{re.escape(_PATCHES)}\.", r"encoder\.layer\.\d+\.attention\."
_ANCHORS = anchors(
    stem=rf"(?:(?:vit|deit)\.)?{_STEM}", blocks=rf"(?:(?:vit|deit)\.)?{_BLOCK}"
)
_ENCODER = re.compile(rf"(vit\.|deit\.|)(?:{_STEM}|{_BLOCK})")
# Names in memory in transformers 5 → names in its files.
_RENAMES = (
    (r"^layers\.(\d+)\.", rf"{_LAYER}\1."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
_HEAD_NAMES = [f"{head}.{leaf}" for head in _HEADS for leaf in ("weight", "bias")]
_QKV_BIAS = re.compile(r"\.attention\.attention\.(query|key|value)\.bias$")
# Parts used only for pretraining. The decoder of ViTMAE has a table of its own; others
# are not read.
_LEFT_OUT = re.compile(r"decoder\.")
_UNSUPPORTED = {
    r".*layers\.\d+\.(blocks|downsample)\b": "stages of several resolutions (Swin)",
    r".*relative_position": "relative position biases",
    r".*(lambda_?\d|layer_scale)": "LayerScale (of BEiT and DINOv2)",
    r".*\.norm[12]\.": "blocks of DINOv2",
    r".*detection_tokens$": "detection tokens",
    r".*register_tokens$": "register tokens",
    r".*rope": "rotary position embeddings",
}


def _recognises(names: Iterable[str]) -> bool:
    return any(_ANCHORS.stem.match(name) for name in names)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    wrapper = find_prefix(specs, _ANCHORS, hints.prefix)
    unwrapped = [
        name.removeprefix(wrapper) for name in specs if name.startswith(wrapper)
    ]
    encoder = next(match[1] for name in unwrapped if (match := _ENCODER.match(name)))
    stem = specs.get(f"{wrapper}{encoder}{_PATCHES}.weight")
    width = next(iter(stem.shape), None) if stem else None
    head = find_head(specs, wrapper, _HEAD_NAMES, width)
    inner = head.pieces | {
        name: Piece(wrapper + name)
        for name in unwrapped
        if wrapper + name not in head.skipped
    }
    prefix = _prefix(
        any(name.endswith("embeddings.distillation_token") for name in inner),
        any(name.startswith(_HEADS) for name in inner),
    )
    pieces = decoder_pieces(wrapper, unwrapped, _RENAMES)
    for name, piece in inner.items():
        if _LEFT_OUT.match(name):
            continue
        table_name = name
        if name.startswith(encoder) and not name.startswith(_HEADS):
            part = name.removeprefix(encoder)
            for pattern, replacement in _RENAMES:
                part = re.sub(pattern, replacement, part)
            table_name = prefix + part
        # If two names mean one tensor, the second stays unchanged and is reported.
        pieces[name if table_name in pieces else table_name] = piece
    return pieces


def _read(shapes: Shapes, hints: Hints) -> Reading:
    hints = of_companions(hints)
    distillation = any(n.endswith("embeddings.distillation_token") for n in shapes)
    # Whether the table's names have a prefix depends on the head.
    p = _prefix(distillation, any(name.startswith(_HEADS) for name in shapes))
    layers = numbers(shapes, f"{p}{_LAYER}", ".")
    refuse(features(shapes, _UNSUPPORTED))
    config = HuggingFaceConfig(hints.config)
    kernel, position, hidden = sizes(
        shapes,
        {
            f"{p}{_PATCHES}.weight": 4,
            f"{p}embeddings.position_embeddings": 3,
            f"{_of_any_layer(shapes, p, layers, 'intermediate.dense')}.weight": 2,
        },
    )
    width, patch_size = kernel[0], (kernel[2], kernel[3])
    size = width, len(layers), hidden[0]
    config.check(
        width=width,
        depth=len(layers),
        mlp_dim=hidden[0],
        channels=kernel[1],
        patch_size=patch_size,
    )
    assumed = []
    _, grid = grid_of(
        "position_embeddings",
        position[1],
        [1 + int(distillation)],
        patch_size,
        hints,
        config.image_size,
        assumed,
    )
    if hints.num_heads:
        num_heads = check_heads(hints.num_heads, width, "num_heads=")
    elif config.num_heads:
        num_heads = check_heads(config.num_heads, width, "config.json")
    else:
        num_heads, sentence = heads_by_sizes(*size)
        assumed.append(sentence)
    with_teacher = "cls_classifier.weight" in shapes
    head = "cls_classifier.weight" if with_teacher else "classifier.weight"
    pooler = "" if p else "pooler.dense.weight"
    architecture = Architecture(
        width=width,
        depth=len(layers),
        mlp_dim=hidden[0],
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=outputs(shapes, head),
        channels=kernel[1],
        distillation_token=distillation,
        distillation_head=with_teacher or not distillation,
        pre_logits=outputs(shapes, pooler),
        gelu=config.gelu,
        layernorm_epsilon=config.layernorm_epsilon,
        qkv_bias=any(_QKV_BIAS.search(name) for name in shapes),
    )
    if architecture.pre_logits:
        config.check_pooler()
    if architecture.num_classes and f"{p}pooler.dense.weight" in shapes:
        assumed += config.about_pooler()
    preprocessing, sentences = read_preprocessing(
        hints, architecture, masked=has_decoder(shapes)
    )
    assumed += sentences
    class_names, sentences = from_tables(hints.config, architecture.num_classes)
    meaning, unknown = read_outputs(hints.config, architecture.num_classes)
    return Reading(
        architecture,
        preprocessing,
        class_names,
        (*config.assumed, *assumed, *sentences, *unknown),
        posemb_resize="bicubic_torch",
        outputs=meaning,
        outputs_known=bool(hints.config),
    )


def _rows(architecture: ViTOrMixer) -> list[Row]:
    a = architecture
    assert isinstance(a, Architecture)
    p = _prefix(a.distillation_token, bool(a.num_classes))
    rows = [Row(f"{p}embeddings.cls_token", ("cls",), SAME)]
    if a.distillation_token:
        rows.append(Row(f"{p}embeddings.distillation_token", ("distillation",), SAME))
    rows.append(
        Row(
            f"{p}embeddings.position_embeddings",
            ("pos_embed_prefix", "pos_embed"),
            positions(a.grid, a.num_position_prefix),
        )
    )
    rows += conv(f"{p}{_PATCHES}", "patch_embed")
    for i in range(a.depth):
        theirs, ours = f"{p}{_LAYER}{i}", f"blocks_{i:02d}"
        rows += norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
        projection = linear if a.qkv_bias else linear_without_bias
        for part in ("query", "key", "value"):
            rows += projection(
                f"{theirs}.attention.attention.{part}", f"{ours}/attention/{part}"
            )
        rows += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out")
        rows += norm(f"{theirs}.layernorm_after", f"{ours}/norm2")
        rows += _MLPS[a.mlp_type](theirs, f"{ours}/mlp")
    rows += norm(f"{p}layernorm", "norm")
    if a.pre_logits:
        rows += linear("pooler.dense", "pre_logits")
    if a.num_classes and a.distillation_token and a.distillation_head:
        rows += linear("cls_classifier", "head")
        rows += linear("distillation_classifier", "head_distillation")
    elif a.num_classes:
        rows += linear("classifier", "head")
    return rows


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    a = architecture
    if isinstance(a, MixerArchitecture):
        return ["an MLP-Mixer"]
    has = {
        "sin-cos positions": a.posemb != "learned",
        "a trunk": a.trunk is not None,
        "register tokens": a.registers,
        "LayerScale": a.layer_scale,
        "the mean of the patches as the head's input": a.pooling == "gap",
        "attention pooling": a.pooling == "map",
        "a class token without a position": (
            a.class_token and not a.class_token_position
        ),
        "the norm after pooling": a.norm == "after_pool",
        "a tanh layer before a head": a.pre_logits and a.num_classes,
        "a distillation token whose head is missing": (
            a.distillation_token and a.distillation_head and not a.num_classes
        ),
    }
    phrases = [phrase for phrase, present in has.items() if present]
    return phrases + unnamed_kinds(a, _MLPS)


def _mlp(theirs: str, ours: str) -> list[Row]:
    first = linear(f"{theirs}.intermediate.dense", f"{ours}/fc1")
    return first + linear(f"{theirs}.output.dense", f"{ours}/fc2")


# Kind of MLP → its rows in a layer.
_MLPS = {"plain": _mlp}


def _prefix(distillation: bool, head: bool) -> str:
    """Returns the prefix of the encoder's names; without a head they have none."""
    if not head:
        return ""
    return "deit." if distillation else "vit."


def _of_any_layer(shapes: Shapes, prefix: str, layers: list[int], part: str) -> str:
    # All layers have the same shapes. If the first one lacks the part, another one
    # serves, and the missing part is reported together with all other problems.
    names = [f"{prefix}{_LAYER}{i}.{part}" for i in layers]
    return next(
        (n for n in names if f"{n}.weight" in shapes), f"{prefix}{_LAYER}0.{part}"
    )


FORMAT = Format(
    name="huggingface",
    title="Hugging Face's",
    anchors=_ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=lost,
    # The mask token of masked image modelling, and a pooler that classifiers ignore.
    ignored=(
        *(f"{p}embeddings.mask_token" for p in ("", "vit.", "deit.")),
        *(
            f"{p}pooler.dense.{leaf}"
            for p in ("vit.", "deit.")
            for leaf in ("weight", "bias")
        ),
    ),
    decoder=DECODER_TABLE,
)
