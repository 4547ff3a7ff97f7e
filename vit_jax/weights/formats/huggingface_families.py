"""The families of models in transformers that are read and written, one row each.

Names are those in files. Version 5 of transformers has other ones in memory, and writes
the old ones; `renames` turns the former into the latter.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.models import Architecture
from vit_jax.weights.formats.layout import BESIDE, unnamed_kinds

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
HEADS = ("classifier", "cls_classifier", "distillation_classifier")
# Kind of MLP → its matrices, which every family has names for.
MLPS = {"plain": ("mlp/fc1", "mlp/fc2")}

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ATTENTION = {
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
}
_VIT_LAYER = {
    "norm1": "layernorm_before",
    **_ATTENTION,
    "norm2": "layernorm_after",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_DINOV2_LAYER = {
    "norm1": "norm1",
    **_ATTENTION,
    "layer_scale1": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "layer_scale2": "layer_scale2.lambda1",
}
_SIGLIP_LAYER = {
    "norm1": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_RENAMED_ATTENTION = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_RENAMED_LAYER = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    *_RENAMED_ATTENTION,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _takes_a_square_grid(a: Architecture) -> bool:
    # Positions of other images are resized, as if they were those of a square.
    return a.image_size[0] == a.image_size[1] or a.grid[0] == a.grid[1]


def _takes_square_images(a: Architecture) -> bool:
    return all(size[0] == size[1] for size in (a.image_size, a.patch_size))


class Family(NamedTuple):
    """The names of a family, the defaults of its library, and what it can hold.

    Attributes:
      title: how its classes begin, as in "ViT" of ViTModel.
      prefix: prefix of the encoder's names in the file of a classifier.
      model_types: values of `model_type` in config.json, the first one is written.
      asked: the words for `model_types` in messages.
      marks: patterns of names that only this family has, all of them; () if another
        family has all of its names.
      bare: whether the encoder's names lack the prefix in a file without a head.
      layer: part of a block → its name in a layer.
      layers, patches, positions, norm: names of the encoder's parts.
      renames: names in memory → names in files.
      beside: patterns of names of the encoder that a classifier does not read.
      class_token, distillation, registers, pooler: whether it has these tokens and a
        tanh layer on the class token.
      pooled, with_head: poolings that it holds without a head and with one.
      fits: architecture → whether its code places the positions right.
      only_qkv_bias: whether queries, keys and values always have a bias.
      mask_token: shape of the mask token without the width, which its pretraining
        learns and nothing else reads; () if files need not have one.
      epsilon, act: the library's `layer_norm_eps` and `hidden_act`.
      heads: the library's `num_attention_heads` if its files may leave it out, else 0.
      mlp: the entry of config.json that tells the width of MLPs.
      entries: what else is written into config.json.
      posemb_resize: how its code resizes positions, a row of `positions.METHODS`.
      values: mean and standard deviation if no file records them.
      geometry: (keeps the aspect, (size, size of the crop from it), interpolation),
        likewise.
      processors: classes that resize, also crop, and keep the aspect.
      scaled: whether its processor makes smaller images than the positions are for.
    """

    title: str
    prefix: str
    model_types: tuple[str, ...]
    asked: str
    marks: tuple[str, ...] = ()
    bare: bool = True
    layer: Mapping[str, str] = _VIT_LAYER
    layers: str = "encoder.layer."
    patches: str = "embeddings.patch_embeddings.projection"
    positions: str = "embeddings.position_embeddings"
    norm: str = "layernorm"
    renames: Sequence[tuple[str, str]] = _RENAMED_LAYER
    beside: str = r"(?!)"
    class_token: bool = True
    distillation: bool = False
    registers: bool = False
    pooler: bool = False
    pooled: tuple[str, ...] = ("cls",)
    with_head: tuple[str, ...] = ("cls",)
    fits: Callable[[Architecture], bool] = lambda _: True
    only_qkv_bias: bool = False
    mask_token: tuple[int, ...] = ()
    epsilon: float = 1e-12
    act: str = "gelu"
    heads: int = 0
    mlp: str = "intermediate_size"
    entries: Mapping[str, Any] = _NO_DROPOUT
    posemb_resize: str = "bicubic_torch"
    values: tuple[tuple[float, ...], tuple[float, ...]] = HALF
    geometry: tuple[bool, tuple[int, int], str] = (False, (1, 1), "bilinear_antialias")
    processors: tuple[str, str, str] = (
        "ViTImageProcessor",
        "DeiTImageProcessor",
        "CLIPImageProcessor",
    )
    scaled: bool = False

    @property
    def layer_scale(self) -> bool:
        return "layer_scale1" in self.layer


_VIT = Family(
    title="ViT",
    prefix="vit.",
    # The last two have the same encoder as the first.
    model_types=("vit", "deit", "vit_mae", "vit_msn"),
    asked="vit or deit",
    pooler=True,
)
_DEIT = _VIT._replace(
    title="DeiT",
    prefix="deit.",
    model_types=("deit", *_VIT.model_types),
    marks=(r"embeddings\.distillation_token$",),
    distillation=True,
    values=IMAGENET,
    geometry=(False, (256, 224), "bicubic_antialias"),
)
_DINOV2 = Family(
    title="Dinov2",
    prefix="dinov2.",
    model_types=("dinov2",),
    asked="dinov2",
    marks=(r"encoder\.layer\.\d+\.(norm1|layer_scale1)\.",),
    layer=_DINOV2_LAYER,
    renames=_RENAMED_ATTENTION,
    with_head=("cls_gap",),
    fits=_takes_a_square_grid,
    mask_token=(1,),
    epsilon=1e-6,
    mlp="mlp_ratio",
    entries={
        **_NO_DROPOUT,
        "layerscale_value": 1.0,  # only the initial one
        "use_swiglu_ffn": False,
    },
    values=IMAGENET,
    geometry=(True, (256, 224), "bicubic_antialias"),
    processors=("ViTImageProcessor", "DeiTImageProcessor", "BitImageProcessor"),
    scaled=True,
)
_DINOV2_WITH_REGISTERS = _DINOV2._replace(
    title="Dinov2WithRegisters",
    prefix="dinov2_with_registers.",
    model_types=("dinov2_with_registers",),
    asked="dinov2_with_registers",
    marks=(*_DINOV2.marks, r"embeddings\.register_tokens$"),
    registers=True,
    posemb_resize="bicubic",
)
_IJEPA = Family(
    title="IJepa",
    prefix="ijepa.",
    model_types=("ijepa",),
    asked="ijepa",
    class_token=False,
    pooled=("gap",),
    with_head=("gap",),
    values=IMAGENET,
)
_SIGLIP = Family(
    title="SiglipVision",
    prefix="vision_model.",
    model_types=("siglip_vision_model", "siglip"),
    asked="siglip or siglip_vision_model",
    marks=(r"embeddings\.patch_embedding\.weight$",),
    bare=False,
    layer=_SIGLIP_LAYER,
    layers="encoder.layers.",
    patches="embeddings.patch_embedding",
    positions="embeddings.position_embedding.weight",
    norm="post_layernorm",
    renames=(),
    beside=r"head\.",
    class_token=False,
    pooled=("map",),
    # Classifiers read the mean of the patches, as those of I-JEPA, which are written.
    with_head=(),
    fits=_takes_square_images,
    only_qkv_bias=True,
    epsilon=1e-6,
    act="gelu_pytorch_tanh",
    heads=12,
    entries={"attention_dropout": 0.0, "vision_use_head": True},
    geometry=(False, (1, 1), "bicubic_antialias"),
    processors=("SiglipImageProcessor", "DeiTImageProcessor", "CLIPImageProcessor"),
)
# A model that several can express is written as the first of them.
FAMILIES = (_VIT, _DEIT, _DINOV2, _DINOV2_WITH_REGISTERS, _IJEPA, _SIGLIP)
PREFIXES = tuple(family.prefix for family in FAMILIES)


def family_of_names(names: Collection[str], prefix: str) -> Family:
    """Recognises the family of an encoder.

    Args:
      names: the encoder's names without their prefix.
      prefix: that prefix, which may be another family's.
    """

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    for family in sorted(FAMILIES, key=lambda family: -len(family.marks)):
        if family.marks and all(map(has, family.marks)):
            return family
    plain = [family for family in FAMILIES if not family.marks]
    token = has(r"embeddings\.cls_token$")
    return next(
        (family for family in plain if family.prefix == prefix),
        next(family for family in plain if family.class_token == token),
    )


def family_in_table(names: Collection[str]) -> Family:
    """Recognises the family of the table's names, which have its prefix or none."""
    for family in FAMILIES:
        if any(name.startswith(family.prefix) for name in names):
            return family
    return family_of_names(names, "")


def family_to_write(architecture: Architecture) -> tuple[Family, list[str]]:
    """Chooses the family for a model, and lists phrases for what it cannot hold."""
    a = architecture

    def distance(family: Family) -> int:
        kind, size = _of_kind(family, a), _of_size(family, a)
        # A classifier that reads the class token is a ViT with something added.
        other = a.num_classes and a.pooling == "cls" and "cls" not in family.with_head
        return 2 * len(kind) + len(size) + bool(other)

    # The nearest family explains best what is in the way.
    family = min(FAMILIES, key=distance)
    problems = _of_kind(family, a) + _of_size(family, a)
    return family, problems + unnamed_kinds(a, MLPS)


def prefix_of(family: Family, head: bool) -> str:
    """Returns the prefix of the encoder's names, with or without a head."""
    return family.prefix if head or not family.bare else ""


def _of_size(family: Family, a: Architecture) -> list[str]:
    """Lists phrases for what another model of the family's kind would not have."""
    has = {
        "queries, keys and values without bias": (
            family.only_qkv_bias and not a.qkv_bias
        ),
        "images or patches that are not square": not family.fits(a),
        "MLPs whose width is no multiple of the model's": (
            family.mlp == "mlp_ratio" and a.mlp_dim % a.width
        ),
    }
    return [phrase for phrase, present in has.items() if present]


def _of_kind(family: Family, a: Architecture) -> list[str]:
    """Lists phrases for what no model of the family has."""
    poolings = family.with_head if a.num_classes else family.pooled
    read = a.pooling not in poolings
    has = {
        "sin-cos positions": a.posemb != "learned",
        "a trunk": a.trunk is not None,
        "register tokens": a.registers and not family.registers,
        "blocks without register tokens": family.registers and not a.registers,
        "positions of register tokens": a.register_positions,
        "LayerScale": a.layer_scale and not family.layer_scale,
        "blocks without LayerScale": family.layer_scale and not a.layer_scale,
        "the class token alone as the head's input": read and a.pooling == "cls",
        "the mean of the patches as the head's input": read and a.pooling == "gap",
        "attention pooling": read and a.pooling == "map",
        BESIDE: read and a.pooling == "cls_gap",
        "a class token": a.class_token and not family.class_token,
        "patches without a class token": family.class_token and not a.class_token,
        "a class token without a position": (
            a.class_token and not a.class_token_position
        ),
        "a distillation token": a.distillation_token and not family.distillation,
        "a class token alone": family.distillation and not a.distillation_token,
        "a distillation token whose head is missing": (
            a.distillation_token and a.distillation_head and not a.num_classes
        ),
        "the norm after pooling": a.norm == "after_pool",
        "a tanh layer before a head": a.pre_logits and a.num_classes,
        "a tanh layer": a.pre_logits and not family.pooler,
    }
    return [phrase for phrase, present in has.items() if present]
