"""Reading and writing of Hugging Face's config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.outputs import EXCLUSIVE
from vit_jax.weights.formats.companion import (
    COUNT,
    COUNT_OR_NONE,
    EPSILON,
    FACTOR,
    TABLE,
    TEXT,
    check_agreement,
    entry,
    size_entry,
)
from vit_jax.weights.formats.huggingface_families import Family, family_to_write
from vit_jax.weights.formats.huggingface_processor import (
    lost_about_images,
    write_processor,
)
from vit_jax.weights.formats.meaning import written_outputs
from vit_jax.words import quoted

_GELU = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}
_WRITTEN_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}


class HuggingFaceConfig:
    """A config.json of transformers; an empty one leaves everything open.

    That of a model with several encoders has the image encoder's entries in an object
    of its own (vision_config). Entries that are absent have the library's defaults.

    Attributes:
      image_size: (height, width); None if not given.
      num_heads: None if not given.
      gelu: our name of the activation.
      layernorm_epsilon: the given one, or the library's default.
      masked: whether it is that of a masked autoencoder (ViTMAE).
      assumed: one sentence per assumption.

    Raises:
      UserError: a value is not of the expected kind, or requires a function that no
        `Architecture` expresses.
    """

    def __init__(self, whole: Mapping[str, Any], family: Family):
        config = entry(whole, "vision_config", TABLE)
        self._whole, self._family = whole, family
        self._config = config = whole if config is None else config
        self.image_size = size_entry(config, "image_size")
        self.masked = entry(whole, "model_type", TEXT) == "vit_mae"
        usual_heads = family.heads if whole and family.heads else None
        self.num_heads: int | None = entry(
            config, "num_attention_heads", COUNT, usual_heads
        )
        act = entry(config, "hidden_act", TEXT, family.act)
        if act not in _GELU:
            raise UserError(
                f"the activation of this model (hidden_act) is {quoted(act)}, but "
                f"vit_jax supports only {', '.join(_GELU)}. Use another model"
            )
        self.gelu = _GELU[act]
        self.layernorm_epsilon = float(
            entry(config, "layer_norm_eps", EPSILON, family.epsilon)
        )
        self.assumed: tuple[str, ...] = ()
        if "layer_norm_eps" not in config and not whole.get("model_type"):
            self.assumed = (
                "no config.json gives the LayerNorm's epsilon: assumed "
                f"{family.epsilon:g}, the default of transformers",
            )

    def check(
        self,
        *,
        width: int,
        depth: int,
        mlp_dim: int,
        channels: int,
        patch_size: tuple[int, int],
        registers: int,
    ) -> None:
        """Raises UserError if the config does not match these sizes."""
        told, family = self._config, self._family
        kind = entry(self._whole, "model_type", TEXT)
        ratio = entry(told, "mlp_ratio", FACTOR)
        asked = None if kind in family.model_types else kind
        check_agreement(
            [
                ("model_type", asked, family.asked),
                ("hidden_size", entry(told, "hidden_size", COUNT), width),
                ("num_hidden_layers", entry(told, "num_hidden_layers", COUNT), depth),
                ("intermediate_size", entry(told, "intermediate_size", COUNT), mlp_dim),
                # transformers rounds down.
                ("hidden_size · mlp_ratio", ratio and int(width * ratio), mlp_dim),
                ("num_channels", entry(told, "num_channels", COUNT), channels),
                ("patch_size", size_entry(told, "patch_size"), patch_size),
                (
                    "num_register_tokens",
                    entry(told, "num_register_tokens", COUNT_OR_NONE),
                    registers,
                ),
            ]
        )

    def about_pooler(self) -> list[str]:
        """Says what is assumed about a classifier beside a pooler, if anything.

        Those of transformers read the class token. Others may read the pooler's output.
        """
        classes = self._whole.get("architectures")
        if "ForImageClassification" in str(classes):
            return []
        return [
            "assumed that the head reads the class token, and not the output of the "
            "pooler (a tanh layer), which is left out; if it reads that, drop the head "
            "with num_classes=0"
        ]

    def about_head(self, architecture: Architecture) -> list[str]:
        """Says what is assumed about the input of a head, if anything.

        Classifiers of transformers read what their family's do.
        """
        a = architecture
        usual = a.pooling in (self._family.with_head or ("gap",))
        if not a.num_classes or (usual and a.class_token):
            return []
        if usual and "ForImageClassification" in str(self._whole.get("architectures")):
            return []
        read = "mean of the patches" if a.pooling == "gap" else "class token"
        return [
            f"assumed that the head reads the {read}; if it reads anything else, drop "
            "it with num_classes=0"
        ]

    def check_pooler(self) -> None:
        """Raises UserError if the pooler's activation is not tanh."""
        act = entry(self._config, "pooler_act", TEXT, "tanh")
        if act != "tanh":
            raise UserError(
                f"the activation of the pooler (pooler_act) is {quoted(act)}, but "
                "vit_jax supports only tanh. Use another model"
            )


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
    family, _ = family_to_write(a)
    labels = class_names or [f"LABEL_{index}" for index in range(a.num_classes)]
    config = _written(a, family)
    if a.num_classes:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config |= written_outputs(outputs, a.num_classes)
    if a.pre_logits:
        config |= {"pooler_output_size": a.pre_logits, "pooler_act": "tanh"}
    return {
        "config.json": config,
        "preprocessor_config.json": write_processor(preprocessing, family),
    }


def lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    """Lists sentences about what transformers computes differently than the model."""
    a = architecture
    assert isinstance(a, Architecture)
    family, _ = family_to_write(a)
    headless = not a.num_classes and not a.pre_logits
    differs = {
        "transformers adds an untrained pooler to a model without a head; its "
        "last_hidden_state is still right": headless and family.pooler,
        "transformers returns the tokens of a model without a head, and not their "
        "mean": headless and a.pooling == "gap",
        "the mask token, which only pretraining with masked patches reads, is written "
        "as zeros, as transformers makes a new one": bool(family.mask_token),
    }
    sentences = [sentence for sentence, present in differs.items() if present]
    return lost_about_images(preprocessing, family) + sentences


def _written(a: Architecture, family: Family) -> dict[str, Any]:
    """Makes the entries of config.json that describe the encoder."""
    kind = f"{family.title}Model"
    if a.num_classes:
        teacher = a.distillation_token and a.distillation_head
        kind = f"{family.title}ForImageClassification{'WithTeacher' if teacher else ''}"
    config = {
        "architectures": [kind],
        "model_type": family.model_types[0],
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.num_heads,
        "hidden_act": _WRITTEN_GELU[a.gelu],
        "layer_norm_eps": a.layernorm_epsilon,
        "image_size": _one_or_two(a.image_size),
        "patch_size": _one_or_two(a.patch_size),
        "num_channels": a.channels,
        "torch_dtype": "float32",
    }
    ratio = {"mlp_ratio": a.mlp_dim // a.width, "intermediate_size": a.mlp_dim}
    config[family.mlp] = ratio[family.mlp]
    if family.registers:
        config["num_register_tokens"] = a.registers
    if not family.only_qkv_bias:
        config["qkv_bias"] = a.qkv_bias
    return config | dict(family.entries)


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
