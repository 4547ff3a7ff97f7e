"""Hugging Face's format: ViT, DeiT, DINOv2, I-JEPA and SigLIP of transformers.

Files have the names of the modules in version 4, which version 5 still writes. The
names of version 5's modules in memory are read too. The families' names are rows of
huggingface_families.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.companion import of_companions
from vit_jax.weights.formats.heads import find_head
from vit_jax.weights.formats.huggingface_config import (
    HuggingFaceConfig,
    lost,
)
from vit_jax.weights.formats.huggingface_config import companions as companions
from vit_jax.weights.formats.huggingface_families import (
    HEADS,
    IMAGENET,
    MLPS,
    PREFIXES,
    Family,
    family_in_table,
    family_of_names,
    family_to_write,
    prefix_of,
)
from vit_jax.weights.formats.huggingface_mae import (
    DECODER_TABLE,
    decoder_pieces,
    has_decoder,
)
from vit_jax.weights.formats.huggingface_processor import read_preprocessing
from vit_jax.weights.formats.labels import from_tables
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    SAME,
    Format,
    Hints,
    Layout,
    Piece,
    Reading,
    Row,
    Shapes,
    positions,
)
from vit_jax.weights.formats.meaning import read_outputs
from vit_jax.weights.formats.prefixes import anchors, find_prefix
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes
from vit_jax.weights.formats.torch_layers import (
    QKV,
    check_heads,
    conv,
    features,
    fused,
    heads_by_sizes,
    linear,
    linear_without_bias,
    norm,
    outputs,
    refuse,
)

_PREFIX = rf"(?:(?:{'|'.join(p.removesuffix('.') for p in PREFIXES)})\.)?"
_STEM = r"embeddings\.(?:patch_embeddings\.projection|patch_embedding)\."
_BLOCK = r"encoder\.(?:layer\.\d+\.attention|layers\.\d+\.self_attn)\."
_ANCHORS = anchors(stem=_PREFIX + _STEM, blocks=_PREFIX + _BLOCK)
_ENCODER = re.compile(rf"({_PREFIX})(?:{_STEM}|{_BLOCK})")
# CLIP has SigLIP's names and these.
_CLIP = re.compile(r"(?:.*\.)?(?:embeddings\.class_embedding|pre_layrnorm\.weight)$")
_HEAD_NAMES = [f"{head}.{leaf}" for head in HEADS for leaf in ("weight", "bias")]
# Parts used only for pretraining. The decoder of ViTMAE has a table of its own; others
# are not read.
_LEFT_OUT = re.compile(r"decoder\.|text_model\.|logit_(scale|bias)$")
_UNSUPPORTED = {
    r".*layers\.\d+\.(blocks|downsample)\b": "stages of several resolutions (Swin)",
    r".*relative_position": "relative position biases",
    r".*\.mlp\.(weights_in|weights_out|gate_proj|up_proj)\.": (
        "gated MLPs (SwiGLU, of DINOv2's giant model)"
    ),
    r".*detection_tokens$": "detection tokens",
    r".*rope": "rotary position embeddings",
}
# The same of families that lack them.
_ELSEWHERE = {
    r".*(lambda_?\d|layer_scale)": "LayerScale (of BEiT and DINOv2)",
    r".*\.norm[12]\.": "blocks of DINOv2",
    r".*register_tokens$": "register tokens",
}


def _recognises(names: Iterable[str]) -> bool:
    names = list(names)
    found = any(_ANCHORS.stem.match(name) for name in names)
    return found and not any(_CLIP.match(name) for name in names)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    wrapper = find_prefix(specs, _ANCHORS, hints.prefix)
    unwrapped = [
        name.removeprefix(wrapper) for name in specs if name.startswith(wrapper)
    ]
    encoder = next(match[1] for name in unwrapped if (match := _ENCODER.match(name)))
    own = [name.removeprefix(encoder) for name in unwrapped if name.startswith(encoder)]
    family = family_of_names(own, encoder)
    # What is called a head there is a part of the encoder.
    beside = re.compile(re.escape(wrapper + encoder) + family.beside)
    visible = {name: spec for name, spec in specs.items() if not beside.match(name)}
    stem = specs.get(f"{wrapper}{encoder}{family.patches}.weight")
    head = find_head(visible, wrapper, _HEAD_NAMES, _width(visible, wrapper, stem))
    inner = head.pieces | {
        name: Piece(wrapper + name)
        for name in unwrapped
        if wrapper + name not in head.skipped
    }
    has_head = any(name.startswith(HEADS) for name in inner)
    prefix = prefix_of(family, has_head)
    pieces = decoder_pieces(wrapper, unwrapped, family.renames)
    for name, piece in inner.items():
        if _LEFT_OUT.match(name) or (has_head and beside.match(wrapper + name)):
            continue
        table_name = name
        if name.startswith(encoder) and not name.startswith(HEADS):
            part = name.removeprefix(encoder)
            for pattern, replacement in family.renames:
                part = re.sub(pattern, replacement, part)
            table_name = prefix + part
        # If two names mean one tensor, the second stays unchanged and is reported.
        pieces[name if table_name in pieces else table_name] = piece
    return pieces


def _width(specs: Mapping[str, Spec], wrapper: str, stem: Spec | None) -> int | None:
    """Returns the number of features that a head reads; None if unknown."""
    width = next(iter(stem.shape), None) if stem else None
    own = specs.get(f"{wrapper}{HEADS[0]}.weight")
    # The class token and the mean of the patches, if the table's own head says so.
    two = width and own and own.shape[1:] == (2 * width,)
    return 2 * width if width and two else width


def _read(shapes: Shapes, hints: Hints) -> Reading:
    hints = of_companions(hints)
    family = family_in_table(shapes)
    # Whether the table's names have a prefix depends on the head.
    p = prefix_of(family, any(name.startswith(HEADS) for name in shapes))
    layers = numbers(shapes, f"{p}{family.layers}", ".")
    refuse([*features(shapes, _UNSUPPORTED), *_unusual(shapes, family, p)])
    config = HuggingFaceConfig(hints.config, family)
    distillation = any(n.endswith("embeddings.distillation_token") for n in shapes)
    kernel, position, hidden = sizes(
        shapes,
        {
            f"{p}{family.patches}.weight": 4,
            f"{p}{family.positions}": 2 if family.positions.endswith("weight") else 3,
            f"{_of_any_layer(shapes, p, layers, family)}.weight": 2,
        },
    )
    width, patch_size = kernel[0], (kernel[2], kernel[3])
    size = width, len(layers), hidden[0]
    registers = 0
    if family.registers:
        registers = shapes.get(f"{p}embeddings.register_tokens", (1, 0))[1]
    config.check(
        width=width,
        depth=len(layers),
        mlp_dim=hidden[0],
        channels=kernel[1],
        patch_size=patch_size,
        registers=registers,
    )
    assumed = []
    _, grid = grid_of(
        family.positions.rpartition("embeddings.")[2],
        position[-2],
        [int(family.class_token) + int(distillation)],
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
    pooler = "pooler.dense.weight" if family.pooler and not p else ""
    pooling = _pooling(shapes, family, p, shapes.get(head, ())[1:] == (2 * width,))
    architecture = Architecture(
        width=width,
        depth=len(layers),
        mlp_dim=hidden[0],
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=outputs(shapes, head),
        channels=kernel[1],
        pooling=pooling,
        class_token=family.class_token,
        class_token_position=family.class_token,
        registers=registers,
        layer_scale=family.layer_scale,
        distillation_token=distillation,
        distillation_head=with_teacher or not distillation,
        pre_logits=outputs(shapes, pooler),
        gelu=config.gelu,
        layernorm_epsilon=config.layernorm_epsilon,
        qkv_bias=any(name.endswith(_biases(family)) for name in shapes),
    )
    if architecture.pre_logits:
        config.check_pooler()
    if architecture.num_classes and f"{p}pooler.dense.weight" in shapes:
        assumed += config.about_pooler()
    assumed += config.about_head(architecture)
    own, _ = family_to_write(architecture)
    if has_decoder(shapes) or config.masked:
        # Released masked autoencoders have the same as DeiT.
        family = family._replace(values=IMAGENET)
    preprocessing, sentences = read_preprocessing(hints, architecture, family)
    assumed += sentences
    class_names, sentences = from_tables(hints.config, architecture.num_classes)
    meaning, unknown = read_outputs(hints.config, architecture.num_classes)
    return Reading(
        architecture,
        preprocessing,
        class_names,
        (*config.assumed, *assumed, *sentences, *unknown),
        posemb_resize=family.posemb_resize,
        outputs=meaning,
        outputs_known=bool(hints.config),
        # Others can be read too, such as a classifier of SigLIP.
        rows=() if own is family else tuple(rows_of_family(architecture, family)),
    )


def _unusual(shapes: Shapes, family: Family, p: str) -> Iterator[str]:
    """Yields features that no `Architecture` has, or not in this family."""
    own = "|".join(re.escape(part) for part in family.layer.values())
    held = rf".*\.(?:{own})(?:\.|$)"
    others = {name: s for name, s in shapes.items() if not re.match(held, name)}
    if family.registers:
        others.pop(f"{p}embeddings.register_tokens", None)
    yield from features(others, _ELSEWHERE)
    if len(shapes.get(f"{p}{family.patches}.weight", ())) == 2:
        yield (
            "any number of patches, which masks tell apart from padding (NaFlex: "
            f"{p}{family.patches}.weight reads rows of pixels)"
        )


def _pooling(shapes: Shapes, family: Family, p: str, two: bool) -> str:
    """Returns our name of the pooling; `two`: the head reads twice the width."""
    if f"{p}head.probe" in shapes:
        return "map"
    if not family.class_token:
        return "gap"
    return "cls_gap" if two and "cls_gap" in family.with_head else "cls"


def _rows(architecture: ViTOrMixer) -> list[Row]:
    assert isinstance(architecture, Architecture)
    family, _ = family_to_write(architecture)
    return rows_of_family(architecture, family)


def rows_of_family(a: Architecture, family: Family) -> list[Row]:
    """Makes the table of a model of this family."""
    p = prefix_of(family, bool(a.num_classes))
    tokens = {
        "cls_token": ("cls", a.class_token),
        "distillation_token": ("distillation", a.distillation_token),
        "register_tokens": ("registers", a.registers),
    }
    rows = [
        Row(f"{p}embeddings.{theirs}", (ours,), SAME)
        for theirs, (ours, there) in tokens.items()
        if there
    ]
    prefix = a.num_position_prefix
    ours = ("pos_embed_prefix", "pos_embed") if prefix else ("pos_embed",)
    layout = positions(a.grid, prefix)
    if family.positions.endswith("weight"):
        layout = _without_batch(layout)
    rows.append(Row(f"{p}{family.positions}", ours, layout))
    rows += conv(f"{p}{family.patches}", "patch_embed")
    for i in range(a.depth):
        rows += _layer(a, family, f"{p}{family.layers}{i}", f"blocks_{i:02d}")
    rows += norm(f"{p}{family.norm}", "norm")
    if a.pooling == "map":
        theirs, ours = f"{p}head", "map_head"
        rows.append(Row(f"{theirs}.probe", (f"{ours}/probe",), SAME))
        rows += fused(f"{theirs}.attention.in_proj", f"{ours}/attention", QKV, "_")
        rows += linear(f"{theirs}.attention.out_proj", f"{ours}/attention/out")
        rows += norm(f"{theirs}.layernorm", f"{ours}/norm")
        for part in MLPS[a.mlp_type]:
            rows += linear(f"{theirs}.{family.layer[part]}", f"{ours}/{part}")
    if a.pre_logits:
        rows += linear("pooler.dense", "pre_logits")
    if a.num_classes and a.distillation_token and a.distillation_head:
        rows += linear("cls_classifier", "head")
        rows += linear("distillation_classifier", "head_distillation")
    elif a.num_classes:
        rows += linear("classifier", "head")
    return rows


def _layer(a: Architecture, family: Family, theirs: str, ours: str) -> list[Row]:
    """Makes the rows of a block."""
    qkv = linear if a.qkv_bias else linear_without_bias
    scales = ("layer_scale1", "layer_scale2") if a.layer_scale else ()
    parts = [
        *((part, norm) for part in ("norm1", "norm2")),
        *((f"attention/{part}", qkv) for part in QKV),
        *((part, linear) for part in ("attention/out", *MLPS[a.mlp_type])),
        *((part, _scale) for part in scales),
    ]
    return [
        row
        for part, kind in parts
        for row in kind(f"{theirs}.{family.layer[part]}", f"{ours}/{part}")
    ]


def _scale(theirs: str, ours: str) -> list[Row]:
    return [Row(theirs, (ours,), SAME)]


def _without_batch(layout: Layout) -> Layout:
    """Makes the layout of an array that lacks the first axis, of size 1."""
    return Layout(lambda x: layout.read(x[None]), lambda *xs: layout.write(*xs)[0])


def _regenerated(architecture: ViTOrMixer) -> dict[str, np.ndarray]:
    a = architecture
    assert isinstance(a, Architecture)
    family, _ = family_to_write(a)
    if not family.mask_token:
        return {}
    name = f"{prefix_of(family, bool(a.num_classes))}embeddings.mask_token"
    return {name: np.zeros((*family.mask_token, a.width), np.float32)}


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    if isinstance(architecture, MixerArchitecture):
        return ["an MLP-Mixer"]
    _, problems = family_to_write(architecture)
    return problems


def _biases(family: Family) -> tuple[str, ...]:
    """Returns the ends of the names of the biases of queries, keys and values."""
    return tuple(f".{family.layer[f'attention/{part}']}.bias" for part in QKV)


def _of_any_layer(
    shapes: Shapes, prefix: str, layers: list[int], family: Family
) -> str:
    # All layers have the same shapes. If the first one lacks the part, another one
    # serves, and the missing part is reported together with all other problems.
    start, part = f"{prefix}{family.layers}", family.layer["mlp/fc1"]
    names = [f"{start}{i}.{part}" for i in layers]
    return next((n for n in names if f"{n}.weight" in shapes), f"{start}0.{part}")


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
    regenerated=_regenerated,
    # The mask token of masked image modelling, numbers of positions, and a pooler that
    # classifiers ignore.
    ignored=tuple(
        f"{p}{name}"
        for p in ("", *PREFIXES)
        for name in (
            "embeddings.mask_token",
            "embeddings.position_ids",
            *(f"pooler.dense.{leaf}" for leaf in ("weight", "bias") if p),
        )
    ),
    decoder=DECODER_TABLE,
)
