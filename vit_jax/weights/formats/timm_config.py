"""timm's config.json: what it says of a model, and what we write there."""

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import VARIANTS, Architecture, ViTOrMixer
from vit_jax.weights.formats.companion import (
    COUNT,
    COUNT_OR_NONE,
    FACTOR,
    FLAG,
    FRACTION,
    INPUT,
    NUMBERS,
    TABLE,
    TEXT,
    TEXTS,
    check_agreement,
    entry,
    one_a_channel,
    size_entry,
)
from vit_jax.weights.formats.geometry import (
    Geometry,
    from_chain,
    to_chain,
    usual_spelling,
)
from vit_jax.words import quoted

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5,) * 3, (0.5,) * 3
_EPSILON = 1e-6
_POOLING = {"token": "cls", "avg": "gap", "map": "map"}
_GELU = {"gelu": "exact", "gelu_tanh": "tanh"}
# timm's interpolation → ours, which has no counterpart of the last three.
_INTERPOLATIONS = {
    "nearest": "nearest",
    "bilinear": "bilinear_antialias",
    "bicubic": "bicubic_antialias",
    "box": "area",
    "hamming": "bilinear_antialias",
    "lanczos": "bicubic_antialias",
    "random": "bicubic_antialias",
}
# Ours → timm's, which has none without antialias: `lost` says so.
_WRITTEN_INTERPOLATIONS = {
    ours: theirs for theirs, ours in reversed(_INTERPOLATIONS.items())
} | {"bilinear": "bilinear", "bicubic": "bicubic"}
# Names whose functions in timm set what neither weights nor arguments show.
_GELU_TANH = re.compile(
    r"_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_"
    r"|_large_patch16_siglip_(gap_)?512"
)
_OTHERWISE = {
    r"_rpn_": "norms behind attention and MLP (res-post-norm)",
    r"^test_vit3$": "pooling of all tokens (pool_include_prefix)",
}
_SIZES = {
    "tiny": "Ti",
    "small": "S",
    "medium": "M",
    "base": "B",
    "large": "L",
    "so400m": "So400m",
    "huge": "H",
    "giant": "g",
    "gigantic": "G",
}
# Functions of timm that build what the arguments cannot say; all else is in them.
_PLAIN = "vit_base_patch16_224"
_DISTILLED = "deit_base_distilled_patch16_224"
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


class TimmConfig:
    """A config.json of timm, of any age; an empty one says nothing.

    Attributes:
      no_embed_class: that positions are of the patches alone; None if not told.
      image_size: (height, width), None if not told.
      pooling: ours; "" if not told.
      gelu: ours.

    Raises:
      UserError: a value is not of its kind, or asks for a function that no
        `Architecture` expresses.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config
        self._args = entry(config, "model_args", TABLE, {})
        # Files of before 2023 have all in one table.
        self._pretrained = entry(config, "pretrained_cfg", TABLE, config)
        self._name = entry(config, "architecture", TEXT, "").partition(".")[0]
        self.no_embed_class: bool | None = entry(self._args, "no_embed_class", FLAG)
        input_size = entry(self._pretrained, "input_size", INPUT)
        self.image_size = size_entry(
            self._args, "img_size", input_size and input_size[1:]
        )
        pool = entry(
            self._args, "global_pool", TEXT, entry(config, "global_pool", TEXT)
        )
        act = entry(self._args, "act_layer", TEXT, self._usual_act())
        norm = entry(self._args, "norm_layer", TEXT, "layernorm")
        _check_choices(
            ("global_pool", pool, ["", *_POOLING]),
            ("act_layer", act, _GELU),
            ("norm_layer", norm, ["layernorm"]),
            ("pool_include_prefix", self._args.get("pool_include_prefix"), [False]),
            ("architecture", self._otherwise(), []),
        )
        self.pooling = _POOLING.get(pool, "")
        self.gelu = _GELU[act]

    def check(
        self,
        *,
        width: int,
        depth: int,
        mlp_dim: int,
        kernel: tuple[int, int],
        channels: int,
        class_token: bool,
        registers: int,
        num_classes: int,
    ) -> None:
        """Refuses arguments that are not those of a model of such shapes.

        Two say the number of classes: `num_classes` at the top, or else among
        pretrained_cfg, is that of the weights, and the argument that of the model timm
        builds, which drops a head with another number.
        """
        args, pretrained = self._args, self._pretrained
        ratio = entry(args, "mlp_ratio", FACTOR)
        # timm rounds the product down.
        same = ratio is not None and int(width * ratio) == mlp_dim
        classes = entry(
            self._config,
            "num_classes",
            COUNT_OR_NONE,
            entry(pretrained, "num_classes", COUNT_OR_NONE),
        )
        check_agreement(
            [
                ("embed_dim", entry(args, "embed_dim", COUNT), width),
                ("depth", entry(args, "depth", COUNT), depth),
                ("mlp_ratio", None if same else ratio, mlp_dim / width),
                ("patch_size", size_entry(args, "patch_size"), kernel),
                ("in_chans", entry(args, "in_chans", COUNT), channels),
                ("class_token", entry(args, "class_token", FLAG), class_token),
                ("reg_tokens", entry(args, "reg_tokens", COUNT_OR_NONE), registers),
                ("num_classes", classes, num_classes),
                (
                    "num_classes of model_args",
                    entry(args, "num_classes", COUNT_OR_NONE),
                    num_classes,
                ),
            ]
        )

    def num_heads(self, width: int) -> int | None:
        """As told, or as the model of this name has them."""
        told = entry(
            self._args, "num_heads", COUNT, entry(self._config, "num_heads", COUNT)
        )
        if told:
            return told
        for part in self._name.split("_"):
            size = VARIANTS.get(_SIZES.get(part, ""))
            if size and size.width == width:
                return size.num_heads
        return None

    def class_names(self, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
        """In the order of the head's outputs, () if not told; and what was assumed."""
        table = self._pretrained
        names = entry(
            self._config, "label_names", TEXTS, entry(table, "label_names", TEXTS)
        )
        if not names or not num_classes:
            return (), []
        if len(names) != num_classes:
            return (), [
                f"the companion file names {len(names)} classes and the head has "
                f"{num_classes}: assumed that their names are unknown"
            ]
        return tuple(names), []

    def preprocessing(
        self, architecture: Architecture, published: Preprocessing | None
    ) -> tuple[Preprocessing, list[str]]:
        """Of the model's size, and what was assumed.

        Args:
          architecture: the model.
          published: what is known of a published model; comes first.
        """
        a = architecture
        if published is not None:
            replaced = dataclasses.replace(
                published, image_size=a.image_size, channels=a.channels
            )
            return replaced, []
        told = self._pretrained
        imagenet = (
            a.distillation_token or a.layer_scale or self._name.startswith("deit")
        )
        mean, std = _IMAGENET if imagenet else _HALF
        preprocessing = Preprocessing(
            a.image_size,
            a.channels,
            _chain(told, a.image_size),
            one_a_channel(entry(told, "mean", NUMBERS, mean), a.channels),
            one_a_channel(entry(told, "std", NUMBERS, std), a.channels),
        )
        assumed = []
        if missing := [
            name
            for name in ("mean", "std", "crop_pct", "interpolation")
            if name not in told
        ]:
            assumed.append(
                "nothing beside the file tells its preprocessing "
                f"({', '.join(missing)}): assumed mean {preprocessing.mean}, standard "
                f"deviation {preprocessing.std} and {preprocessing.eval_transform!r}"
            )
        mode = entry(told, "crop_mode", TEXT, "center")
        interpolation = entry(told, "interpolation", TEXT, "bicubic")
        if mode not in ("center", "squash") or interpolation not in _INTERPOLATIONS:
            assumed.append(
                f"the crop mode {quoted(mode)} with interpolation "
                f"{quoted(interpolation)} is not known: assumed "
                f"{preprocessing.eval_transform!r}, which is near"
            )
        return preprocessing, assumed

    def _otherwise(self) -> str | None:
        """What the model of this name does otherwise, unseen in its weights."""
        found = (
            does for name, does in _OTHERWISE.items() if re.search(name, self._name)
        )
        return next(found, None)

    def _usual_act(self) -> str:
        """The activation of a model of this name."""
        if "quickgelu" in self._name:
            return "quick_gelu"
        return "gelu_tanh" if _GELU_TANH.search(self._name) else "gelu"


def companions(
    architecture: ViTOrMixer,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """{"config.json": …}, which `timm.create_model("local-dir:…")` makes the model by.

    Args:
      architecture: of the weights beside it.
      preprocessing: of their input.
      class_names: in the order of the head's outputs.
    """
    a = architecture
    assert isinstance(a, Architecture)
    pool = {ours: theirs for theirs, ours in _POOLING.items()}[a.pooling]
    args = {
        "img_size": list(a.image_size),
        "patch_size": _one_or_two(a.embed_kernel),
        "in_chans": a.channels,
        "num_classes": a.num_classes,
        "global_pool": pool,
        "embed_dim": a.width,
        "depth": a.depth,
        "num_heads": a.num_heads,
        "mlp_ratio": _mlp_ratio(a),
        "class_token": a.class_token,
        "no_embed_class": not a.num_position_prefix,
        "reg_tokens": a.registers,
        "fc_norm": a.norm == "after_pool",
        "qkv_bias": a.qkv_bias,
        "act_layer": {ours: theirs for theirs, ours in _GELU.items()}[a.gelu],
    }
    if a.layer_scale:
        args["init_values"] = 1e-5
    first = "patch_embed.proj"
    if a.trunk is not None:
        first = f"patch_embed.backbone.{'stem.' if a.trunk else ''}conv"
    distilled = a.distillation_token
    config = {
        "architecture": _entrypoint(a),
        "num_classes": a.num_classes,
        "num_features": a.width,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [a.channels, *a.image_size],
            "fixed_input_size": True,
            **_crop(preprocessing),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": a.num_classes,
            "pool_size": None,
            "first_conv": first,
            "classifier": ["head", "head_dist"] if distilled else "head",
        },
    }
    if class_names:
        config["label_names"] = list(class_names)
    return {"config.json": config}


def lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    """What timm does otherwise than the model, a sentence each."""
    a, p = architecture, preprocessing
    assert isinstance(a, Architecture)
    written = _crop(p)
    chain = _chain(written, p.image_size)
    differs = {
        f"the LayerNorm's epsilon is {a.layernorm_epsilon:g}, and timm uses "
        f"{_EPSILON:g}": a.layernorm_epsilon != _EPSILON,
        "the trunk's norms have Google's epsilons, and timm uses its own": (
            a.trunk is not None and a.trunk_numerics != "timm"
        ),
        f"timm has no model with the trunk {a.trunk}: its trunk has to be built by "
        "hand": a.trunk is not None and a.trunk not in _HYBRIDS,
        f"images to evaluate on pass {p.eval_transform!r}, which timm cannot do": (
            not written
        ),
        f"images to evaluate on pass {p.eval_transform!r}, and in timm {chain!r}": (
            bool(written) and chain != usual_spelling(p)
        ),
    }
    return [sentence for sentence, present in differs.items() if present]


def _check_choices(
    *choices: tuple[str, Any, Sequence[Any] | Mapping[Any, Any]],
) -> None:
    wrong = [
        f"{name} {quoted(value) if isinstance(value, str) else reprlib.repr(value)}"
        for name, value, known in choices
        if value is not None and value not in known
    ]
    if wrong:
        raise UserError(
            "according to its companion file this model has what vit_jax does not "
            f"compute: {', '.join(wrong)}. Use another model"
        )


def _scaled(image_size: tuple[int, int], crop: float) -> tuple[int, int]:
    height, width = (max(math.floor(size / crop), size) for size in image_size)
    return height, width


def _chain(told: Mapping[str, Any], image_size: tuple[int, int]) -> str:
    """The chain of operations that timm's evaluation does."""
    crop = entry(told, "crop_pct", FRACTION, 0.9 if min(image_size) < 384 else 1.0)
    mode = entry(told, "crop_mode", TEXT, "center")
    interpolation = entry(told, "interpolation", TEXT, "bicubic")
    height, width = _scaled(image_size, crop)
    geometry = Geometry(
        keeps_aspect=mode != "squash",
        size=(height, width),
        interpolation=_INTERPOLATIONS.get(interpolation, "bicubic_antialias"),
        # A square's shorter side and a rectangle are not the same function there.
        side_rounding="down" if height == width else "nearest",
        crop_rounding="nearest",
    )
    return to_chain(geometry, image_size)


def _crop(preprocessing: Preprocessing) -> dict[str, Any]:
    """The evaluation's chain in timm's terms; {} if it has none for it."""
    geometry = from_chain(preprocessing)
    if geometry is None:
        return {}
    image_size = preprocessing.image_size
    # timm rounds down, which must give the size back; the shortest number that does,
    # near the quotient or below it: 224 / 0.56 is less than 400.
    exact = [
        ours / theirs for ours, theirs in zip(image_size, geometry.size, strict=True)
    ]
    crops = (
        whole / 10**digits
        for digits in range(1, 9)
        for crop in exact
        for whole in (round(crop * 10**digits), math.ceil(crop * 10**digits) - 1)
    )
    fitting = [
        crop
        for crop in crops
        if 0 < crop <= 1 and _scaled(image_size, crop) == geometry.size
    ]
    if not fitting:
        return {}
    return {
        "interpolation": _WRITTEN_INTERPOLATIONS[geometry.interpolation],
        "crop_pct": fitting[0],
        "crop_mode": "center" if geometry.keeps_aspect else "squash",
    }


def _entrypoint(a: Architecture) -> str:
    if a.trunk is not None:
        # timm refuses a name it does not know, as it should one with another trunk.
        return _HYBRIDS.get(a.trunk, f"vit_resnet_{'_'.join(map(str, a.trunk))}")
    return _DISTILLED if a.distillation_token else _PLAIN


def _mlp_ratio(a: Architecture) -> float:
    ratio = a.mlp_dim / a.width
    # timm rounds the product down.
    return ratio if int(a.width * ratio) == a.mlp_dim else (a.mlp_dim + 0.5) / a.width


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
