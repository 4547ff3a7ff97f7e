"""Reasons why no format knows the tensors of a file: what they belong to instead."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vit_jax.errors import UserError
from vit_jax.weights.files.entries import is_training_state
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.layout import Format
from vit_jax.words import plain, shortened


class Kind(NamedTuple):
    """A kind of model that is not read.

    Attributes:
      pattern: the names of such a model, found anywhere in a name.
      words: what it is.
      remedy: what to do, if anything else than passing another file.
    """

    pattern: str
    words: str
    remedy: str = ""


_ANOTHER = "Pass the weights of a Vision Transformer or MLP-Mixer"
QUANTIZED = Kind(
    r"\.(qweight|qzeros|scales_and_zeros|SCB|weight_format|absmax|quant_map|"
    r"quant_state\b.*|weight_scale|weight_scale_inv|_packed_params.*)$",
    "quantized weights",
    "Pass the weights before quantization, or dequantize them where they were made",
)
# Tried before the formats: these files have the names of a model and more.
ADAPTED = (
    Kind(
        r"(^|[._])lora_|\.lora\.|\.base_layer\.|(^|\.)adapter_[ab]\.",
        "a LoRA adapter, which changes another model's weights",
        "Keep the adapter_config.json of PEFT beside it, and pass the directory; or "
        "merge it into its model where it was trained, with merge_and_unload() of "
        "peft, and save the whole model",
    ),
    QUANTIZED,
)
_OTHERS = (
    Kind(
        r"(^|\.)decoder_(embed|pred|blocks\.\d+)\.|(^|\.)decoder\.decoder_\w+\.",
        "the decoder of a masked autoencoder without its encoder",
        "Pass the file that has both, or the encoder alone",
    ),
    Kind(
        r"(relative_position_bias_table|layers\.\d+\.blocks\.\d+\.attn\.|"
        r"features\.\d+\.\d+\.attn\.qkv)",
        "a Swin Transformer or another model with windows",
    ),
    Kind(
        r"(dwconv|conv_dw|downsample_layers\.\d+|depthwise_conv|"
        r"features\.\d+\.\d+\.block\.0)\.",
        "a ConvNeXt, EfficientNet or another model with depthwise convolutions",
    ),
    Kind(r"(^|\.)layer[1-4]\.\d+\.conv\d\.|running_mean$", "a convolutional network"),
    Kind(
        r"(visual\.transformer\.resblocks|vision_model\.encoder|"
        r"vision_model\.embeddings|visual\.conv1)",
        "a CLIP or SigLIP model in a layout that vit_jax does not read",
        "Pass its image encoder as timm saves it, such as hf:timm/"
        "vit_base_patch16_clip_224.openai",
    ),
    Kind(
        r"(text_model|text_encoder|token_embedding|word_embeddings|wte|embed_tokens|"
        r"lm_head|text_projection)\b",
        "a text encoder or language model",
    ),
    Kind(
        r"(to_patch_embedding|transformer\.layers\.\d+\.[01]\.)",
        "a Vision Transformer of the package vit-pytorch, whose layers differ",
    ),
    Kind(
        r"(down_blocks|up_blocks|adaLN_modulation|x_embedder|time_embed)",
        "a diffusion model",
    ),
)


def why_unknown(tensors: Tensors, formats: Iterable[Format]) -> str:
    """Returns a message that says what a file without a known model holds."""
    names = max(_names_of_entries(tensors), key=len)
    shown = shortened(names, plain, most=5)
    held = f"{tensors.path} holds {len(names)} tensors ({shown or 'none'})"
    if names and all(is_training_state(name.split(".")) for name in names):
        return f"{held}: the state of an optimizer and no weights. {_ANOTHER}"
    if kind := find_kind(names, (*ADAPTED, *_OTHERS)):
        return f"{held}: {kind.words}. {kind.remedy or _ANOTHER}"
    titles = ", ".join(format.title for format in formats)
    return (
        f"{held} whose names are not those of a known format; known are {titles}, and "
        "vit_jax's own. Pass a file in one of these formats"
    )


def _names_of_entries(tensors: Tensors) -> Iterator[list[str]]:
    yield list(tensors.specs)
    for entry in tensors.entries[1:]:
        with contextlib.suppress(UserError):
            yield list(tensors.of(entry).specs)


def find_kind(names: Iterable[str], kinds: Iterable[Kind]) -> Kind | None:
    """Returns the first kind of which a name is one; None if there is none."""
    names = list(names)
    for kind in kinds:
        pattern = re.compile(kind.pattern)
        if any(pattern.search(name) for name in names):
            return kind
    return None
