"""timm's format: ViT, DeiT, DeiT-III, register tokens, hybrids; also Facebook's files.

The names are those of pytorch-image-models 1.0
(github.com/huggingface/pytorch-image-models). Differing names in older versions and in
facebookresearch/deit are read too.
"""

import re
from collections.abc import Iterable, Mapping

from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.companion import of_companions
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
from vit_jax.weights.formats.meaning import read_outputs
from vit_jax.weights.formats.prefixes import anchors, find_prefix, find_prefixes
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes
from vit_jax.weights.formats.timm_config import TimmConfig, lost
from vit_jax.weights.formats.timm_config import companions as companions
from vit_jax.weights.formats.timm_trunk import (
    BACKBONE,
    root_of,
    trunk_of,
    trunk_rows,
)
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

_ANCHORS = anchors(stem=r"patch_embed\.", blocks=r"blocks\.(?:\d+\.){1,2}attn\b")
# DINOv2 may keep its blocks in chunks; the second number counts all blocks.
_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_RENAMES = (
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),  # Facebook's DeiT-III
    (r"^register_tokens$", "reg_token"),  # Facebook's DINOv2
)
_HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
# Parts of a masked autoencoder used only for pretraining, which are not read.
_LEFT_OUT = re.compile(r"decoder_|mask_token$")
_UNSUPPORTED = {
    r"blocks\.\d+\.attn\.[qk]_norm\.": "normalised queries and keys (qk-norm)",
    r"attn_pool\.[qk]_norm\.": "normalised queries and keys (qk-norm)",
    r".*rel(ative)?_pos": "relative position biases",
    r".*(rope|freqs)": "rotary position embeddings",
    r"norm_pre\.": "a norm before the blocks (CLIP)",
    r"patch_embed\.norm\.": "a norm after the patch embedding",
    r"blocks\.\d+\.mlp\.(w\d|fc1_[gx])": "gated MLPs (SwiGLU)",
    r"blocks\.\d+\.(attn|mlp)\.norm\.": "norms inside of attention or MLP",
    r"blocks\.\d+\.attn\.[qkv](_proj|_bias)?(\.|$)": (
        "separate projections of queries, keys and values"
    ),
    r"blocks\.\d+\.(attns|ffns|in_proj)\.": "parallel branches in a block",
    r"blocks\.\d+\.mlp_tokens\.": "mixing of tokens by an MLP (MLP-Mixer)",
    r"(layers|stages)\.\d+\.": "stages of several resolutions",
    r"attn_pool\.pos_embed$": "positions in the attention pooling",
    rf"{re.escape(BACKBONE)}\.(?!((stem\.)?(conv|norm)|stages\.\d+\.blocks\.\d+)\.)": (
        "a trunk other than a ResNet with weight-standardised convolutions"
    ),
}


def _recognises(names: Iterable[str]) -> bool:
    return bool(find_prefixes(names, _ANCHORS))


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    prefix = find_prefix(specs, _ANCHORS, hints.prefix)
    head = find_head(specs, prefix, _HEADS, _features(specs, prefix))
    pieces = dict(head.pieces)
    numbers = _numbers_of_chunked(specs, prefix)
    for name in specs:
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or name in head.skipped:
            continue
        if _LEFT_OUT.match(inner):
            continue
        for pattern, replacement in _RENAMES:
            inner = re.sub(pattern, replacement, inner)
        if numbers and (match := _CHUNKED.match(inner)):
            inner = f"blocks.{numbers[match[1], match[2]]}.{inner[match.end() :]}"
        # If two names mean one tensor, the second stays unchanged and is reported.
        pieces[name if inner in pieces else inner] = Piece(name)
    return pieces


def _features(specs: Mapping[str, Spec], prefix: str) -> int | None:
    """Returns the number of features that the head reads; None if unknown."""
    for layer in ("pre_logits.fc", "patch_embed.proj"):
        if spec := specs.get(f"{prefix}{layer}.weight"):
            return next(iter(spec.shape), None)
    return None


def _numbers_of_chunked(
    specs: Iterable[str], prefix: str
) -> dict[tuple[str, str], int]:
    """Numbers the blocks that lie in chunks: (chunk, number there) → number."""
    found = {
        (int(match[1]), int(match[2])): (match[1], match[2])
        for name in specs
        if (match := _CHUNKED.match(name.removeprefix(prefix)))
    }
    seconds = [second for _, second in found]
    counts_all = len(set(seconds)) == len(seconds)
    return {
        found[pair]: pair[1] if counts_all else number
        for number, pair in enumerate(sorted(found))
    }


def _read(shapes: Shapes, hints: Hints) -> Reading:
    hints = of_companions(hints)
    refuse(features(shapes, _UNSUPPORTED) + _unusual(shapes))
    config = TimmConfig(hints.config)
    wanted = {
        "patch_embed.proj.weight": 4,
        "pos_embed": 3,
        of_any_block(shapes, "blocks.", "mlp.fc1.weight"): 2,
    }
    trunk = trunk_of(shapes)
    if trunk is not None:
        wanted[f"{root_of(trunk)}.conv.weight"] = 4
    if len(shapes.get("patch_embed.proj.weight", ())) == 5:
        refuse(["patches that span several frames (a video model)"])
    kernel, position, hidden, *root = sizes(shapes, wanted)
    width, depth, mlp_dim = kernel[0], len(numbers(shapes, "blocks.", ".")), hidden[0]
    stride = 1 if trunk is None else 4 * 2 ** max(len(trunk) - 1, 0)
    patch_size = kernel[2] * stride, kernel[3] * stride

    class_token, distillation = "cls_token" in shapes, "dist_token" in shapes
    registers = shapes["reg_token"][1] if len(shapes.get("reg_token", ())) == 3 else 0
    tokens = int(class_token) + int(distillation)
    num_classes = outputs(shapes, "head.weight")
    channels = root[0][1] if root else kernel[1]
    config.check(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        kernel=(kernel[2], kernel[3]),
        channels=channels,
        class_token=class_token,
        registers=registers,
        num_classes=None if hints.headless else num_classes,
    )
    assumed = []
    prefix, grid = grid_of(
        "pos_embed",
        position[1],
        _prefixes(config, tokens, registers),
        patch_size,
        hints,
        config.image_size,
        assumed,
    )
    pooling, sentence = _pooling(shapes, config)
    assumed += sentence
    num_heads, sentence = heads_of(
        hints, (width, depth, mlp_dim), config.num_heads(width)
    )
    assumed += sentence
    architecture = Architecture(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=num_classes,
        channels=channels,
        pooling=pooling,
        class_token=class_token,
        class_token_position=class_token and prefix >= tokens,
        registers=registers,
        register_positions=registers > 0 and prefix == tokens + registers,
        distillation_token=distillation,
        layer_scale=any(name.endswith(".ls1.gamma") for name in shapes),
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in shapes),
        norm="after_pool" if "fc_norm.weight" in shapes else "before_pool",
        pre_logits=outputs(shapes, "pre_logits.fc.weight"),
        gelu=config.gelu,
        trunk=trunk,
        trunk_numerics="timm" if trunk is not None else "google",
    )
    preprocessing, sentence = config.preprocessing(architecture, hints.preprocessing)
    assumed += sentence
    class_names, sentence = config.class_names(architecture.num_classes)
    assumed += sentence
    meaning, sentence = read_outputs(hints.config, architecture.num_classes)
    assumed += sentence
    return Reading(
        architecture,
        preprocessing,
        class_names,
        tuple(assumed),
        posemb_resize="bicubic",
        outputs=meaning,
        outputs_known=bool(hints.config),
    )


def _rows(architecture: ViTOrMixer) -> list[Row]:
    a = architecture
    assert isinstance(a, Architecture)
    tokens = {
        "cls_token": ("cls", a.class_token),
        "dist_token": ("distillation", a.distillation_token),
        "reg_token": ("registers", a.registers),
    }
    rows = [
        Row(theirs, (ours,), SAME) for theirs, (ours, there) in tokens.items() if there
    ]
    prefix = a.num_position_prefix
    ours = ("pos_embed_prefix", "pos_embed") if prefix else ("pos_embed",)
    rows.append(Row("pos_embed", ours, positions(a.grid, prefix)))
    rows += trunk_rows(a) + conv("patch_embed.proj", "patch_embed")
    for i in range(a.depth):
        theirs, ours = f"blocks.{i}", f"blocks_{i:02d}"
        rows += norm(f"{theirs}.norm1", f"{ours}/norm1")
        qkv = fused(f"{theirs}.attn.qkv", f"{ours}/attention", QKV)
        rows += qkv if a.qkv_bias else qkv[:1]
        rows += linear(f"{theirs}.attn.proj", f"{ours}/attention/out")
        rows += norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += MLPS[a.mlp_type](f"{theirs}.mlp", f"{ours}/mlp")
        if a.layer_scale:
            rows += [
                Row(f"{theirs}.ls{j}.gamma", (f"{ours}/layer_scale{j}",), SAME)
                for j in (1, 2)
            ]
    rows += norm("norm" if a.norm == "before_pool" else "fc_norm", "norm")
    if a.pooling == "map":
        rows.append(Row("attn_pool.latent", ("map_head/probe",), SAME))
        rows += linear("attn_pool.q", "map_head/attention/query")
        rows += fused("attn_pool.kv", "map_head/attention", QKV[1:])
        rows += linear("attn_pool.proj", "map_head/attention/out")
        rows += norm("attn_pool.norm", "map_head/norm")
        rows += MLPS[a.mlp_type]("attn_pool.mlp", "map_head/mlp")
    if a.pre_logits:
        rows += linear("pre_logits.fc", "pre_logits")
    if a.num_classes:
        rows += linear("head", "head")
        if a.distillation_token:
            rows += linear("head_dist", "head_distillation")
    return rows


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    a = architecture
    if isinstance(a, MixerArchitecture):
        return ["an MLP-Mixer"]
    has = {
        "sin-cos positions": a.posemb != "learned",
        "a tanh layer before the head (pre_logits), which timm no longer computes": (
            a.pre_logits
        ),
        BESIDE: a.pooling == "cls_gap",
        "positions for only one of class token and register tokens": (
            a.class_token
            and a.registers
            and a.class_token_position != a.register_positions
        ),
        "a class token and a distillation token without positions": (
            a.distillation_token and not a.class_token_position
        ),
        "register tokens beside a distillation token": (
            a.distillation_token and a.registers
        ),
        "a distillation token without a head of its own": (
            a.distillation_token and not a.distillation_head
        ),
    }
    phrases = [phrase for phrase, present in has.items() if present]
    return phrases + unnamed_kinds(a, MLPS)


def _mlp(theirs: str, ours: str) -> list[Row]:
    return linear(f"{theirs}.fc1", f"{ours}/fc1") + linear(
        f"{theirs}.fc2", f"{ours}/fc2"
    )


# Kind of MLP → its rows in a block.
MLPS = {"plain": _mlp}


def _unusual(shapes: Shapes) -> list[str]:
    """Lists features that no `Architecture` has but that names alone do not reveal."""
    fc1, fc2 = (of_any_block(shapes, "blocks.", f"mlp.fc{i}.weight") for i in (1, 2))
    norms = {"norm.weight", "fc_norm.weight"} & shapes.keys()
    pool = {name for name in shapes if name.startswith("attn_pool.")}
    has = {
        "positions that are not learned (no pos_embed)": "pos_embed" not in shapes,
        f"gated MLPs (SwiGLU: {fc1} is twice as wide as {fc2})": (
            outputs(shapes, fc1) == 2 * sum(shapes.get(fc2, ())[1:]) > 0
        ),
        "no norm after the blocks (neither norm.weight nor fc_norm.weight)": not norms,
        "norms before and after pooling (norm.weight and fc_norm.weight)": (
            len(norms) == 2
        ),
        "an attention pooling without an MLP (no attn_pool.mlp.fc1.weight)": (
            bool(pool) and "attn_pool.mlp.fc1.weight" not in pool
        ),
        "several probes in the attention pooling (attn_pool.latent)": (
            shapes.get("attn_pool.latent", (1, 1))[1:2] != (1,)
        ),
    }
    return [phrase for phrase, present in has.items() if present]


def _prefixes(config: TimmConfig, tokens: int, registers: int) -> tuple[int, ...]:
    """Lists possible numbers of other tokens with positions, the most likely first."""
    if config.no_embed_class:
        return 0, tokens
    # No published model with registers gives them positions.
    if registers and config.no_embed_class is None:
        return 0, tokens, tokens + registers
    return tokens + registers, tokens, 0


def _pooling(shapes: Shapes, config: TimmConfig) -> tuple[str, list[str]]:
    """Determines the pooling; also lists assumptions."""
    if any(name.startswith("attn_pool.") for name in shapes):
        return "map", []
    if "cls_token" not in shapes:
        return "gap", []
    if config.pooling:
        return config.pooling, []
    if "fc_norm.weight" in shapes:
        return "gap", []
    if "dist_token" in shapes:
        return "cls", []
    return "cls", [
        "assumed that the head reads the class token; if it reads the mean of the "
        "patches, put the model's config.json beside the file"
    ]


FORMAT = Format(
    name="timm",
    title="timm's",
    anchors=_ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=lost,
)
