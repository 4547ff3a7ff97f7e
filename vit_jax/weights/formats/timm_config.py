"""Reading and writing of timm's config.json."""

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import VARIANTS, Architecture, ViTOrMixer
from vit_jax.models.outputs import EXCLUSIVE
from vit_jax.weights.formats.companion import (
    COUNT,
    COUNT_OR_NONE,
    FACTOR,
    FLAG,
    FRACTION,
    INPUT,
    LABELS,
    NUMBERS,
    TABLE,
    TEXT,
    check_agreement,
    entry,
    one_a_channel,
    size_entry,
)
from vit_jax.weights.formats.geometry import (
    Geometry,
    difference,
    from_chain,
    to_chain,
    usual_spelling,
)
from vit_jax.weights.formats.labels import from_list
from vit_jax.weights.formats.meaning import written_outputs
from vit_jax.words import quoted

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5,) * 3, (0.5,) * 3
_EPSILON = 1e-6
_POOLING = {"token": "cls", "avg": "gap", "map": "map"}
_GELU = {"gelu": "exact", "gelu_tanh": "tanh"}
# timm's interpolation → ours; the last three are the nearest that we have.
_INTERPOLATIONS = {
    "nearest": "nearest",
    "bilinear": "bilinear_antialias",
    "bicubic": "bicubic_antialias",
    "box": "area",
    "hamming": "bilinear_antialias",
    "lanczos": "bicubic_antialias",
    "random": "bicubic_antialias",
}
# Ours → timm's. timm always uses antialiasing; `lost` reports the difference.
_WRITTEN_INTERPOLATIONS = {
    ours: theirs for theirs, ours in reversed(_INTERPOLATIONS.items())
} | {"bilinear": "bilinear", "bicubic": "bicubic"}
# Model names whose functions in timm set options that neither the weights nor the
# arguments show.
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
# Functions of timm for features that no argument expresses; arguments set the rest.
_PLAIN = "vit_base_patch16_224"
_DISTILLED = "deit_base_distilled_patch16_224"
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


class TimmConfig:
    """A config.json of any version of timm; an empty one leaves everything open.

    Attributes:
      no_embed_class: whether only patches have positions; None if not given.
      image_size: (height, width); None if not given.
      pooling: our name of the pooling; "" if not given.
      gelu: our name of the activation.

    Raises:
      UserError: a value is not of the expected kind, or requires a function that no
        `Architecture` expresses.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config
        self._args = entry(config, "model_args", TABLE, {})
        # Files from before 2023 have everything in one table.
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
        num_classes: int | None,
    ) -> None:
        """Raises UserError if the config does not match these sizes.

        `num_classes` is None if the file has a head that is not read.

        The config gives the number of classes twice. `num_classes` at the top, or
        otherwise in pretrained_cfg, is that of the weights. The argument in model_args
        is that of the model that timm builds, which drops a head with another number.
        """
        args, pretrained = self._args, self._pretrained
        whole = num_classes is not None
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
                ("num_classes", classes if whole else None, num_classes),
                (
                    "num_classes of model_args",
                    entry(args, "num_classes", COUNT_OR_NONE) if whole else None,
                    num_classes,
                ),
            ]
        )

    def num_heads(self, width: int) -> int | None:
        """Returns the given number of heads, or that of the model's name; else None."""
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
        """Reads the class names in the order of the head's outputs; () if unknown.

        Also returns one sentence per assumption.
        """
        for table in (self._config, self._pretrained):
            for name in ("label_names", "labels"):  # the second before 2023
                if names := entry(table, name, LABELS):
                    return from_list(names, num_classes)
        return (), []

    def preprocessing(
        self, architecture: Architecture, published: Preprocessing | None
    ) -> tuple[Preprocessing, list[str]]:
        """Reads the preprocessing for the model's size; also lists assumptions.

        Args:
          architecture: the model.
          published: preprocessing of a published model, which takes precedence.
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
                "no config.json gives the complete preprocessing (missing: "
                f"{', '.join(missing)}): assumed mean {preprocessing.mean}, standard "
                f"deviation {preprocessing.std} and {preprocessing.eval_transform!r}"
            )
        mode = entry(told, "crop_mode", TEXT, "center")
        interpolation = entry(told, "interpolation", TEXT, "bicubic")
        if mode not in ("center", "squash") or interpolation not in _INTERPOLATIONS:
            assumed.append(
                f"the crop mode {quoted(mode)} with interpolation "
                f"{quoted(interpolation)} is not supported: assumed "
                f"{preprocessing.eval_transform!r}, which is similar"
            )
        return preprocessing, assumed

    def _otherwise(self) -> str | None:
        """Returns an unsupported feature that only the model's name reveals, if any."""
        found = (
            does for name, does in _OTHERWISE.items() if re.search(name, self._name)
        )
        return next(found, None)

    def _usual_act(self) -> str:
        """Returns the activation that timm uses for a model of this name."""
        if "quickgelu" in self._name:
            return "quick_gelu"
        return "gelu_tanh" if _GELU_TANH.search(self._name) else "gelu"


def companions(
    architecture: ViTOrMixer,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    outputs: str = EXCLUSIVE,
) -> dict[str, Any]:
    """Makes {"config.json": …}, from which `timm.create_model("local-dir:…")` builds.

    Args:
      architecture: the model's architecture.
      preprocessing: the model's preprocessing.
      class_names: in the order of the head's outputs.
      outputs: what the outputs mean. It is written where transformers reads it from
        a timm model's file; timm ignores it.
    """
    a = architecture
    assert isinstance(a, Architecture)
    pool = {ours: theirs for theirs, ours in _POOLING.items()}[a.pooling]
    # Without num_classes: timm takes it from below, and transformers' wrapper of timm's
    # models fails if it is given twice.
    args = {
        "img_size": list(a.image_size),
        "patch_size": _one_or_two(a.embed_kernel),
        "in_chans": a.channels,
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
    config |= written_outputs(outputs, a.num_classes)
    if class_names:
        config["label_names"] = list(class_names)
    return {"config.json": config}


def lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    """Lists sentences about what timm computes differently than the model."""
    a, p = architecture, preprocessing
    assert isinstance(a, Architecture)
    written = _crop(p)
    chain = _chain(written, p.image_size)
    differs = {
        f"timm uses {_EPSILON:g} as the LayerNorm's epsilon, where this model has "
        f"{a.layernorm_epsilon:g}: expect slightly different outputs": (
            a.layernorm_epsilon != _EPSILON
        ),
        "timm uses its own epsilons in the trunk's norms, where this model has "
        "Google's: expect slightly different outputs": a.trunk is not None
        and a.trunk_numerics != "timm",
        f"timm has no model with the trunk {a.trunk}: build the trunk by hand": (
            a.trunk is not None and a.trunk not in _HYBRIDS
        ),
        f"timm cannot preprocess images with {p.eval_transform!r}, with which this "
        "model was evaluated: prepare them with other code": not written,
        f"timm will preprocess images with {chain!r}, where this model was evaluated "
        f"with {p.eval_transform!r} ({difference(chain, p)}): expect slightly "
        "different predictions": (bool(written) and chain != usual_spelling(p)),
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
            "according to its companion file, this model has features that vit_jax "
            f"does not support: {', '.join(wrong)}. Use another model"
        )


def _scaled(image_size: tuple[int, int], crop: float) -> tuple[int, int]:
    height, width = (max(math.floor(size / crop), size) for size in image_size)
    return height, width


def _chain(told: Mapping[str, Any], image_size: tuple[int, int]) -> str:
    """Converts timm's evaluation settings to a chain of operations."""
    crop = entry(told, "crop_pct", FRACTION, 0.9 if min(image_size) < 384 else 1.0)
    mode = entry(told, "crop_mode", TEXT, "center")
    interpolation = entry(told, "interpolation", TEXT, "bicubic")
    height, width = _scaled(image_size, crop)
    geometry = Geometry(
        keeps_aspect=mode != "squash",
        size=(height, width),
        interpolation=_INTERPOLATIONS.get(interpolation, "bicubic_antialias"),
        # timm rounds differently for a square, where it resizes the shorter side.
        side_rounding="down" if height == width else "nearest",
        crop_rounding="nearest",
    )
    return to_chain(geometry, image_size)


def _crop(preprocessing: Preprocessing) -> dict[str, Any]:
    """Converts the evaluation's chain to timm's settings; {} if it has none for it."""
    geometry = from_chain(preprocessing)
    if geometry is None:
        return {}
    image_size = preprocessing.image_size
    # timm divides by crop_pct and rounds down, which must give the size back. This
    # takes the shortest number that does, near the quotient or below it: 224 / 0.56 is
    # less than 400 in floating point.
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
        # For any other trunk, an unknown name makes timm fail, as it should.
        return _HYBRIDS.get(a.trunk, f"vit_resnet_{'_'.join(map(str, a.trunk))}")
    return _DISTILLED if a.distillation_token else _PLAIN


def _mlp_ratio(a: Architecture) -> float:
    ratio = a.mlp_dim / a.width
    # timm rounds the product down.
    return ratio if int(a.width * ratio) == a.mlp_dim else (a.mlp_dim + 0.5) / a.width


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
