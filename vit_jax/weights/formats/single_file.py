"""Our own single-file format: safetensors with a description.

The tensors have our names, joined by "/". The metadata's key "vit_jax" holds the same
description as a checkpoint in a work directory, as JSON.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.decoder_positions import shapes_of_decoder
from vit_jax.weights.formats.known import shapes_of
from vit_jax.weights.formats.layout import (
    SAME,
    Piece,
    Row,
    as_weights,
    flatten,
    read_params,
    unflatten,
)
from vit_jax.words import one_line

_KEY = "vit_jax"
# A unit of a trunk has three kernels, and three norms with scale and bias.
_TENSORS_A_UNIT = 9


def is_single_file(tensors: Tensors) -> bool:
    """Returns whether a file was written in this format."""
    return _KEY in tensors.metadata


def read_single_file(tensors: Tensors) -> tuple[Description, dict[str, Any]]:
    """Reads the description and the parameters, a nested dict of numpy arrays.

    Raises:
      UserError: the description is damaged, or does not match the tensors.
    """
    try:
        description = Description.from_dict(json.loads(tensors.metadata[_KEY]))
    except UserError as error:
        # With runtime type checks, a wrong type gives a message of many lines.
        reason = str(error).partition("\n")[0]
        raise UserError(f"{tensors.path}: {reason}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{tensors.path}: its description is damaged ({one_line(str(error))}). Use "
            "another copy"
        ) from error
    _check_size(description, tensors)
    shapes = shapes_of(description.architecture)
    if description.decoder is not None:
        shapes |= shapes_of_decoder(description.architecture, description.decoder)
    rows = [Row(path, (path,), SAME) for path in shapes]
    pieces = {name: Piece(name) for name in tensors.specs}
    return description, unflatten(read_params(tensors, pieces, rows, shapes))


def _check_size(description: Description, tensors: Tensors) -> None:
    """Rejects a model that the file cannot hold, before huge shapes are computed.

    Raises:
      UserError: it has more or larger tensors than the file; or a decoder beside a
        model that has no patches to leave out.
    """
    a, decoder = description.architecture, description.decoder
    trunk = getattr(a, "trunk", None)
    if decoder is not None and not isinstance(a, Architecture):
        raise UserError(
            f"{tensors.path}: its description has a decoder beside an MLP-Mixer. Use "
            "another copy"
        )
    declared = a.depth + _TENSORS_A_UNIT * sum(trunk or ())
    declared += 0 if decoder is None else decoder.depth
    if declared > len(tensors.specs):
        raise UserError(
            f"{tensors.path}: it holds {len(tensors.specs):,} tensors, but its "
            f"description is of a model with {declared:,} or more ({a.depth:,} blocks, "
            f"trunk {trunk}). Use another copy"
        )
    extents = _extents(a)
    if decoder is not None:
        values = math.prod(a.patch_size) * a.channels
        learned = math.prod(a.grid) * (decoder.posemb == "learned")
        others = decoder.width, decoder.mlp_dim, values, learned
        extents.append(decoder.width * max(others))
    largest = max(extents)
    held = sum(math.prod(spec.shape) for spec in tensors.specs.values())
    if largest > held:
        raise UserError(
            f"{tensors.path}: it holds {held:,} numbers in all, but its description is "
            f"of a model with a tensor of {largest:,}. Use another copy"
        )


def _extents(a: ViTOrMixer) -> list[int]:
    """Lists the sizes of the tensors whose shapes depend on the architecture."""
    extents = [
        math.prod(a.embed_kernel) * a.embed_channels * a.width,
        a.width * a.mlp_dim,
        a.channels,
    ]
    if isinstance(a, MixerArchitecture):
        tokens = math.prod(a.grid)
        return [*extents, a.width * a.num_classes, tokens * a.tokens_mlp_dim]
    learned = math.prod(a.position_grid) * (a.posemb == "learned")
    return [
        *extents,
        (a.pre_logits or a.width) * a.num_classes,
        a.width * max(a.width, a.registers, a.pre_logits, learned),
    ]


def as_single_file(
    description: Description, params: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Makes the arrays and the metadata that `read_single_file` reads."""
    arrays = {
        path: np.ascontiguousarray(as_weights(leaf))
        for path, leaf in flatten(params).items()
    }
    return arrays, {_KEY: json.dumps(description.to_dict())}
