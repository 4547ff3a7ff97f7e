"""The decoder of a masked autoencoder beside the model that is loaded."""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.errors import Problems, UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.decoder import DecoderFacts
from vit_jax.models.positions import resize
from vit_jax.weights.formats.layout import Reading
from vit_jax.weights.published.families import Published
from vit_jax.words import times

logger = logging.getLogger(__name__)

# Argument of `load` → the fact that it states.
_ARGUMENTS = {"decoder_heads": "num_heads", "normalize_pixels": "normalize_pixels"}


def with_target(
    reading: Reading, named: Published | None, told: bool | None
) -> Reading:
    """Finds what a decoder predicts by its file's name, if the file does not record it.

    Args:
      reading: description of the file.
      named: the published weights whose file has this file's name.
      told: the caller's word, which needs no other.
    """
    decoder = reading.decoder
    if decoder is None or decoder.normalize_pixels is not None or told is not None:
        return reading
    known = named.decoder.normalize_pixels if named and named.decoder else None
    if known is None:
        sentence = (
            "nothing records what the decoder predicts: to reconstruct images, pass "
            "normalize_pixels=True if its targets were normalised within each patch, "
            "else False"
        )
    else:
        what = "pixels normalised within each patch" if known else "pixels"
        sentence = f"assumed that the decoder predicts {what}, by the name of the file"
    return reading._replace(
        decoder=dataclasses.replace(decoder, normalize_pixels=known),
        assumed=(*reading.assumed, sentence),
    )


def as_told(
    description: Description,
    path: pathlib.Path,
    decoder_heads: int | None,
    normalize_pixels: bool | None,
) -> Description:
    """Adds what the caller says about a decoder.

    Raises:
      UserError: there is no decoder, or the source records something else.
    """
    given = {"decoder_heads": decoder_heads, "normalize_pixels": normalize_pixels}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return description
    decoder = description.decoder
    if decoder is None:
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{said}, but {path} has no decoder: omit it")
    wrong = [
        f"{name}={value}, but {path} records {known}: omit it"
        for name, value in given.items()
        if (known := getattr(decoder, _ARGUMENTS[name])) not in (None, value)
    ]
    if wrong:
        raise Problems(*wrong)
    told = {_ARGUMENTS[name]: value for name, value in given.items()}
    return dataclasses.replace(
        description, decoder=dataclasses.replace(decoder, **told)
    )


def fit_decoder(
    params: dict[str, Any],
    facts: DecoderFacts,
    source: ViTOrMixer,
    target: ViTOrMixer,
    posemb_resize: str,
    *,
    same_values: bool,
) -> dict[str, Any] | None:
    """Adapts a decoder to another grid; logs why it is left out if it cannot.

    Args:
      params: the decoder's parameters.
      facts: its description.
      source: the architecture of its encoder.
      target: the architecture of the encoder that replaces it.
      posemb_resize: the method for learned positions.
      same_values: whether images have the value range that it was trained with.

    Returns:
      The parameters, or None if it is left out.
    """
    assert isinstance(source, Architecture) and isinstance(target, Architecture)
    alike = all(
        getattr(source, name) == getattr(target, name)
        for name in ("patch_size", "channels")
    )
    if not alike or not same_values:
        logger.warning(
            "pretrained weights: the decoder was left out, because it predicts patches "
            "of %s pixels with %d channels, in the value range of its training",
            times(source.patch_size),
            source.channels,
        )
        return None
    if facts.posemb == "learned" and source.grid != target.grid:
        positions = resize(params["pos_embed"], target.grid, posemb_resize)
        return params | {"pos_embed": np.asarray(positions)}
    return params
