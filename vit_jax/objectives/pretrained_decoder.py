"""The decoder of pretrained weights, for an objective that continues to train it."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.models.decoder import DECODER, DecoderFacts, fixed_positions
from vit_jax.models.positions import same_but_rounded

logger = logging.getLogger(__name__)

# Option of the objective → the fact that it has to equal.
_OPTIONS = {
    "decoder_width": "width",
    "decoder_depth": "depth",
    "decoder_heads": "num_heads",
    "normalize_pixels": "normalize_pixels",
}
_POSITIONS = ("pos_embed_prefix", "pos_embed")


def continued_decoder(
    params: Mapping[str, Any],
    description: Description,
    encoder: Architecture,
    facts: DecoderFacts,
) -> dict[str, Any]:
    """Returns the decoder's subtree of pretrained weights; {} if they have none.

    Args:
      params: the subtrees of the weights that are not the model's own.
      description: that of the weights.
      encoder: the encoder of the run.
      facts: the decoder of the run, with fixed positions.

    Raises:
      UserError: lists the sizes, the positions and the target that differ.
    """
    there = description.decoder
    if there is None:
        logger.warning(
            "pretrained weights: they have no decoder, so a new one starts at random"
        )
        return {}
    decoder = dict(params[DECODER])
    problems = list(_differences(description, there, encoder, facts))
    stored = [decoder.pop(name) for name in _POSITIONS if name in decoder]
    if stored and not _are_fixed(stored):
        problems.append("its positions are not MAE's fixed ones")
    if problems:
        raise UserError(
            "the decoder in the pretrained weights cannot be continued: "
            f"{'; '.join(problems)}. Set these to the values of the weights, or begin "
            "a new decoder on the encoder alone, which python -m vit_jax.convert "
            "SOURCE encoder.safetensors --to=timm writes"
        )
    if there.normalize_pixels is None:
        logger.warning(
            "pretrained weights: nothing records what their decoder was trained to "
            "predict: assumed %s, as in this run",
            "normalised pixels" if facts.normalize_pixels else "pixels",
        )
    return {DECODER: decoder}


def _differences(
    description: Description,
    there: DecoderFacts,
    encoder: Architecture,
    here: DecoderFacts,
) -> Iterator[str]:
    """Yields a phrase for each fact that differs."""
    for option, name in _OPTIONS.items():
        ours, theirs = getattr(here, name), getattr(there, name)
        if theirs is not None and theirs != ours:
            yield f"objective_options.{option}={ours}, but {theirs} in the weights"
    if there.mlp_dim != 4 * there.width:
        yield f"its MLPs are {there.mlp_dim} wide, not 4 × {there.width}"
    if not there.qkv_bias:
        yield "its queries, keys and values have no biases"
    for name, words in (
        ("width", "width of the encoder"),
        ("patch_size", "patch_size"),
        ("channels", "channels"),
        ("num_prefix_tokens", "tokens before the patches"),
    ):
        ours, theirs = getattr(encoder, name), getattr(description.architecture, name)
        if ours != theirs:
            yield f"{words}: {ours} in this run, but {theirs} in the weights"


def _are_fixed(stored: list[Any]) -> bool:
    """Returns whether a decoder's stored positions are the fixed ones, but rounded."""
    prefix, grid = sum(x.shape[1] for x in stored[:-1]), stored[-1].shape[1:3]
    width = stored[-1].shape[-1]
    if width % 4 or width < 8:
        return False
    found = np.concatenate([np.reshape(x, (1, -1, width)) for x in stored], axis=1)
    return same_but_rounded(found, fixed_positions(grid, width, prefix))
