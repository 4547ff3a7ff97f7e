"""The facts of an architecture that the sentences about its stages mention."""

import math
from typing import Any

from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.flexible import is_flexible
from vit_jax.words import times

_POOLING = {
    "cls": "Only the class token is read from here on.",
    "gap": "The patches' tokens are averaged.",
    "map": "A learned probe attends to the patches' tokens, then an MLP follows.",
    "cls_gap": "The class token and the mean of the patches' tokens are put side by "
    "side.",
}
_TWO_TOKENS = "The class token and the distillation token are read from here on."
_POSITIONS = {
    "learned": "A learned vector is added to each patch, one for each place of the "
    "grid.",
    "sincos2d": "Fixed sines and cosines of each patch's row and column are added, "
    "which are not parameters.",
}


def facts_of(architecture: ViTOrMixer) -> dict[str, Any]:
    """Returns the values that the names and sentences of stages mention."""
    a = architecture
    facts = {
        "cut": f"The image is cut into patches of {times(a.patch_size)} pixels",
        "grid": times(a.grid),
        "values": f"{math.prod(a.embed_window) * a.embed_channels:,}",
        "width": a.width,
        "resized": f" (its kernel is stored for {times(a.embed_kernel)} pixels and "
        "resized first)" * is_flexible(a),
        "pooling": "The patches' tokens are averaged.",
        "heads_of_model": f"A dense layer computes {a.num_classes:,} logits.",
    }
    names = (
        "stride positions prefix prefix_name prefix_positions prompts heads "
        "head_width lora scaled"
    )
    facts |= dict.fromkeys(names.split(), "")
    return facts | (_of_transformer(a) if isinstance(a, Architecture) else {})


def _of_transformer(a: Architecture) -> dict[str, Any]:
    facts = {
        "stride": a.trunk_stride,
        "positions": _POSITIONS[a.posemb]
        + (" The stored grid is resized first." if a.flexible_grid else ""),
        "prompts": a.prompts,
        "heads": a.num_heads,
        "head_width": a.width // a.num_heads,
        "lora": f"; rank-{a.lora_rank} adapters are beside {', '.join(a.lora_targets)}"
        * bool(a.lora_rank),
        "scaled": "after a learned factor per channel, " * a.layer_scale,
        "pooling": _TWO_TOKENS if a.num_pooled > 1 else _POOLING[a.pooling],
    }
    if a.trunk is not None:
        window = times(a.embed_window)
        facts["cut"] = f"The features are cut into windows of {window}"
    if a.num_pooled > 1:
        facts["heads_of_model"] = (
            f"Two dense layers compute {a.num_classes:,} logits each, which are "
            "averaged."
        )
    return facts | _prefix(a)


def _prefix(a: Architecture) -> dict[str, str]:
    """Describes the tokens before the patches."""
    tokens = ["class token"] * a.class_token
    tokens += ["distillation token"] * a.distillation_token
    tokens += [f"{a.registers} registers" if a.registers > 1 else "register"] * bool(
        a.registers
    )
    with_positions = a.num_position_prefix
    positions = {
        0: ", without positions",
        a.num_prefix_tokens: ", with positions of their own",
    }
    verb = "is put" if a.num_prefix_tokens == 1 else "are put"
    return {
        "prefix_name": tokens[0] if len(tokens) == 1 else "tokens in front",
        "prefix": f"Learned: {' and '.join(tokens)}; {verb}",
        "prefix_positions": positions.get(
            with_positions, f", {with_positions} of them with positions of their own"
        ),
    }
