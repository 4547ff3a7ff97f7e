"""The positions of a decoder: stored in foreign files, computed here if they are fixed.

Files store MAE's fixed positions as a tensor. If its numbers are bit for bit those that
are computed here, they are no parameters, and are computed again when such a file is
written. Any others, such as those of a library that rounds otherwise, are kept.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.decoder import (
    DECODER,
    DecoderFacts,
    abstract_decoder,
    fixed_positions,
)
from vit_jax.weights.formats.layout import Reading, flatten

_PREFIX, _GRID = f"{DECODER}/pos_embed_prefix", f"{DECODER}/pos_embed"


def shapes_of_decoder(
    encoder: ViTOrMixer, decoder: DecoderFacts
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a decoder's parameters by "/"-joined path."""
    assert isinstance(encoder, Architecture)
    leaves = flatten(abstract_decoder(encoder, decoder), f"{DECODER}/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def without_fixed_positions(
    reading: Reading, params: dict[str, np.ndarray]
) -> tuple[Reading, dict[str, np.ndarray]]:
    """Removes a decoder's positions from the parameters if they are the fixed ones."""
    decoder = reading.decoder
    if decoder is None or decoder.posemb != "learned":
        return reading, params
    found = {name: params[name] for name in (_PREFIX, _GRID) if name in params}
    fixed = _fixed(reading.architecture, decoder)
    if fixed is None or any(found[n].tobytes() != fixed[n].tobytes() for n in found):
        return reading, params
    decoder = dataclasses.replace(decoder, posemb="sincos2d")
    rest = {name: value for name, value in params.items() if name not in found}
    return reading._replace(decoder=decoder), rest


def with_stored_positions(
    encoder: Architecture, decoder: DecoderFacts, params: Mapping[str, Any]
) -> tuple[dict[str, Any], DecoderFacts]:
    """Inverts `without_fixed_positions`, on parameters by path."""
    if decoder.posemb == "learned":
        return dict(params), decoder
    fixed = _fixed(encoder, decoder)
    assert fixed is not None  # the decoder could not have them otherwise
    learned = dataclasses.replace(decoder, posemb="learned")
    return dict(params) | fixed, learned


def _fixed(encoder: ViTOrMixer, decoder: DecoderFacts) -> dict[str, np.ndarray] | None:
    """Computes MAE's positions by path; None if this width has none."""
    if decoder.width % 4 or decoder.width < 8:
        return None
    prefix, shape = encoder.num_prefix_tokens, (1, *encoder.grid, decoder.width)
    table = fixed_positions(encoder.grid, decoder.width, prefix)
    parts = {_GRID: table[:, prefix:].reshape(shape)}
    return parts | ({_PREFIX: table[:, :prefix]} if prefix else {})
