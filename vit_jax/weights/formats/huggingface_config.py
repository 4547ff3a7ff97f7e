"""Reading and writing of Hugging Face's config.json and preprocessor_config.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.outputs import EXCLUSIVE
from vit_jax.weights.formats.companion import (
    COUNT,
    EPSILON,
    FACTOR,
    FLAG,
    NUMBERS,
    PAIR,
    TABLE,
    TEXT,
    Kind,
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
from vit_jax.weights.formats.layout import Hints
from vit_jax.weights.formats.meaning import written_outputs
from vit_jax.words import pair, quoted, times

_EPSILON = 1e-12  # the library's default
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5,) * 3, (0.5,) * 3
_GELU = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}
_WRITTEN_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}
# Model types of transformers; the last two have the same encoder as the first.
_MODEL_TYPES = ("vit", "deit", "vit_mae", "vit_msn")
# Numbers of PIL's filters → our names; the last two are the nearest that we have.
_FILTERS = {
    0: "nearest",
    2: "bilinear_antialias",
    3: "bicubic_antialias",
    4: "area",
    1: "bicubic_antialias",
    5: "bilinear_antialias",
}
# Ours → PIL's. PIL always uses antialiasing; `lost` reports the difference.
_WRITTEN_FILTERS = {ours: number for number, ours in reversed(_FILTERS.items())} | {
    "bilinear": 2,
    "bicubic": 3,
}
_FILTER = Kind(
    lambda value: type(value) is int and value in _FILTERS,
    "the number of a filter, 0 to 5",
)
_SIZE = Kind(
    lambda value: PAIR.holds(value) or TABLE.holds(value),
    "a number of pixels, or an object with height and width or with shortest_edge",
)
# Processors for which a single number as size means the shorter edge.
_SHORTEST = ("CLIP", "Bit", "ConvNext", "LeViT")


class HuggingFaceConfig:
    """A config.json of transformers; an empty one leaves everything open.

    Attributes:
      image_size: (height, width); None if not given.
      num_heads: None if not given.
      gelu: our name of the activation.
      layernorm_epsilon: the given one, or the library's default.
      assumed: one sentence per assumption.

    Raises:
      UserError: a value is not of the expected kind, or requires a function that no
        `Architecture` expresses.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config
        self.image_size = size_entry(config, "image_size")
        self.num_heads: int | None = entry(config, "num_attention_heads", COUNT)
        act = entry(config, "hidden_act", TEXT, "gelu")
        if act not in _GELU:
            raise UserError(
                f"the activation of this model (hidden_act) is {quoted(act)}, but "
                f"vit_jax supports only {', '.join(_GELU)}. Use another model"
            )
        self.gelu = _GELU[act]
        self.layernorm_epsilon = float(
            entry(config, "layer_norm_eps", EPSILON, _EPSILON)
        )
        self.assumed: tuple[str, ...] = ()
        if "layer_norm_eps" not in config:
            self.assumed = (
                "no config.json gives the LayerNorm's epsilon: assumed "
                f"{_EPSILON:g}, the default of transformers",
            )

    def check(
        self,
        *,
        width: int,
        depth: int,
        mlp_dim: int,
        channels: int,
        patch_size: tuple[int, int],
    ) -> None:
        """Raises UserError if the config does not match these sizes."""
        told = self._config
        kind = entry(told, "model_type", TEXT)
        check_agreement(
            [
                ("model_type", None if kind in _MODEL_TYPES else kind, "vit or deit"),
                ("hidden_size", entry(told, "hidden_size", COUNT), width),
                ("num_hidden_layers", entry(told, "num_hidden_layers", COUNT), depth),
                ("intermediate_size", entry(told, "intermediate_size", COUNT), mlp_dim),
                ("num_channels", entry(told, "num_channels", COUNT), channels),
                ("patch_size", size_entry(told, "patch_size"), patch_size),
            ]
        )

    def about_pooler(self) -> list[str]:
        """Says what is assumed about a classifier beside a pooler, if anything.

        Those of transformers read the class token. Others may read the pooler's output.
        """
        classes = self._config.get("architectures")
        if "ForImageClassification" in str(classes):
            return []
        return [
            "assumed that the head reads the class token, and not the output of the "
            "pooler (a tanh layer), which is left out; if it reads that, drop the head "
            "with num_classes=0"
        ]

    def check_pooler(self) -> None:
        """Raises UserError if the pooler's activation is not tanh."""
        act = entry(self._config, "pooler_act", TEXT, "tanh")
        if act != "tanh":
            raise UserError(
                f"the activation of the pooler (pooler_act) is {quoted(act)}, but "
                "vit_jax supports only tanh. Use another model"
            )


def read_preprocessing(
    hints: Hints, architecture: Architecture, *, masked: bool = False
) -> tuple[Preprocessing, list[str]]:
    """Reads the preprocessing from preprocessor_config.json, for the model's size.

    Args:
      hints: have the companion files.
      architecture: the model's architecture.
      masked: whether it is a masked autoencoder, by its tensors.

    Returns:
      The preprocessing, and one sentence per assumption.
    """
    a, told = architecture, hints.preprocessor
    if hints.preprocessing is not None:
        replaced = dataclasses.replace(
            hints.preprocessing, image_size=a.image_size, channels=a.channels
        )
        return replaced, []
    # Released masked autoencoders have the same as DeiT.
    masked |= entry(hints.config, "model_type", TEXT) == "vit_mae"
    usual = _IMAGENET if a.distillation_token or masked else _HALF
    if not told:
        return _usual(a, usual)
    chain, assumed = _chain(told, a.image_size)
    # A processor scales by its factor before it normalises. Ours scales by 1 / 255, so
    # mean and std are converted.
    factor = 1.0
    if entry(told, "do_rescale", FLAG, True):
        factor = float(entry(told, "rescale_factor", FACTOR, 1 / 255))
    mean, std = (0.0,), (1.0,)
    if entry(told, "do_normalize", FLAG, True):
        mean = entry(told, "image_mean", NUMBERS, usual[0])
        std = entry(told, "image_std", NUMBERS, usual[1])
    mean, std = (
        tuple(value / (255 * factor) for value in one_a_channel(values, a.channels))
        for values in (mean, std)
    )
    return Preprocessing(a.image_size, a.channels, chain, mean, std), assumed


def companions(
    architecture: ViTOrMixer,
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    outputs: str = EXCLUSIVE,
) -> dict[str, Any]:
    """Makes config.json and preprocessor_config.json for `from_pretrained`.

    Args:
      architecture: the model's architecture.
      preprocessing: the model's preprocessing.
      class_names: in the order of the head's outputs.
      outputs: what the outputs mean.
    """
    a = architecture
    assert isinstance(a, Architecture)
    family = "DeiT" if a.distillation_token else "ViT"
    kind = f"{family}Model"
    if a.num_classes:
        teacher = a.distillation_token and a.distillation_head
        kind = f"{family}ForImageClassification{'WithTeacher' if teacher else ''}"
    labels = class_names or [f"LABEL_{index}" for index in range(a.num_classes)]
    config = {
        "architectures": [kind],
        "model_type": family.lower(),
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.num_heads,
        "intermediate_size": a.mlp_dim,
        "hidden_act": _WRITTEN_GELU[a.gelu],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": a.layernorm_epsilon,
        "image_size": _one_or_two(a.image_size),
        "patch_size": _one_or_two(a.patch_size),
        "num_channels": a.channels,
        "qkv_bias": a.qkv_bias,
        "torch_dtype": "float32",
    }
    if a.num_classes:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config |= written_outputs(outputs, a.num_classes)
    if a.pre_logits:
        config |= {"pooler_output_size": a.pre_logits, "pooler_act": "tanh"}
    return {
        "config.json": config,
        "preprocessor_config.json": _processor(preprocessing),
    }


def lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    """Lists sentences about what transformers computes differently than the model."""
    a, p = architecture, preprocessing
    assert isinstance(a, Architecture)
    chain, _ = _chain(_processor(p), p.image_size)
    differs = {
        f"transformers will preprocess images with {chain!r}, where this model was "
        f"evaluated with {p.eval_transform!r} ({difference(chain, p)}): expect "
        "slightly different predictions": chain != usual_spelling(p),
        "transformers adds an untrained pooler to a model without a head; its "
        "last_hidden_state is still right": not a.num_classes and not a.pre_logits,
    }
    return [sentence for sentence, present in differs.items() if present]


def _chain(
    told: Mapping[str, Any], image_size: tuple[int, int]
) -> tuple[str, list[str]]:
    """Converts a processor to a chain of operations; also lists assumptions."""
    kind = entry(told, "image_processor_type", TEXT, "") or entry(
        told, "feature_extractor_type", TEXT, ""
    )
    keeps, size = _size(entry(told, "size", _SIZE, list(image_size)), kind)
    number = entry(told, "resample", _FILTER, 3 if "DeiT" in kind else 2)
    interpolation = _FILTERS[number]
    crop = None
    if entry(told, "do_center_crop", FLAG, "crop_size" in told):
        _, crop = _size(entry(told, "crop_size", _SIZE, list(image_size)), "")
    if not entry(told, "do_resize", FLAG, True):
        return "central_crop" if crop else "", []
    final = crop or size
    if final != image_size or (keeps and not crop):
        chain = to_chain(Geometry(False, image_size, interpolation), image_size)
        return chain, [
            f"preprocessor_config.json makes images of {times(final)}"
            f"{' or larger' if keeps and not crop else ''}, but the model takes "
            f"{times(image_size)}: assumed {chain!r}"
        ]
    assumed = []
    if number in (1, 5):
        assumed.append(
            f"the filter {number} (resample) is not supported: assumed {interpolation}"
        )
    geometry = Geometry(keeps, size, interpolation, side_rounding="down")
    return to_chain(geometry, image_size), assumed


def _size(value: Any, kind: str) -> tuple[bool, tuple[int, int]]:
    """Reads whether the aspect ratio is kept, and (height, width)."""
    if isinstance(value, Mapping):
        shortest = entry(value, "shortest_edge", COUNT)
        if shortest:
            return True, (shortest, shortest)
        height, width = (entry(value, side, COUNT) for side in ("height", "width"))
        if not height or not width:
            raise UserError(
                f"a size in preprocessor_config.json is {dict(value)!r}, expected "
                f"{_SIZE.words}: correct it, or remove the file"
            )
        return False, (height, width)
    keeps = isinstance(value, int) and kind.startswith(_SHORTEST)
    return keeps, pair(value)


def _usual(
    a: Architecture, colours: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[Preprocessing, list[str]]:
    """Returns the preprocessing of the family's released models, as an assumption."""
    mean, std = colours
    geometry = Geometry(False, a.image_size, "bilinear_antialias")
    if a.distillation_token:
        height, width = (size * 256 // 224 for size in a.image_size)
        geometry = Geometry(False, (height, width), "bicubic_antialias")
    preprocessing = Preprocessing(
        a.image_size,
        a.channels,
        to_chain(geometry, a.image_size),
        one_a_channel(mean, a.channels),
        one_a_channel(std, a.channels),
    )
    return preprocessing, [
        "there is no preprocessor_config.json: assumed mean "
        f"{preprocessing.mean}, standard deviation {preprocessing.std} and "
        f"{preprocessing.eval_transform!r}"
    ]


def _processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Makes the content of preprocessor_config.json."""
    p = preprocessing
    geometry = from_chain(p) or Geometry(False, p.image_size, "bilinear_antialias")
    if geometry.keeps_aspect and geometry.size[0] != geometry.size[1]:
        # shortest_edge alone could make an image smaller than the crop, which would
        # then be padded with black.
        geometry = Geometry(False, p.image_size, geometry.interpolation)
    crops = geometry.keeps_aspect or geometry.size != p.image_size
    height, width = geometry.size
    # These processors read all keys below; older versions accepted different ones.
    kind = "DeiTImageProcessor" if crops else "ViTImageProcessor"
    size: dict[str, int] = {"height": height, "width": width}
    if geometry.keeps_aspect:
        kind, size = "CLIPImageProcessor", {"shortest_edge": min(geometry.size)}
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": _WRITTEN_FILTERS[geometry.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
    if crops:
        height, width = p.image_size
        config |= {
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    return config


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
