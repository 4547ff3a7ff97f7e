"""Our own format in one file: safetensors that describe themselves.

The tensors have our names, joined by "/"; the metadata's key "vit_jax" holds what the
checkpoints of a work directory say of themselves, as JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.description import Description
from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.known import shapes_of
from vit_jax.weights.formats.layout import (
    SAME,
    Piece,
    Row,
    flatten,
    read_params,
    unflatten,
)

_KEY = "vit_jax"


def is_single_file(tensors: Tensors) -> bool:
    """Whether a file was written in this format."""
    return _KEY in tensors.metadata


def read_single_file(tensors: Tensors) -> tuple[Description, dict[str, Any]]:
    """The description and the parameters, a nested dict of numpy arrays.

    Raises:
      UserError: the description is damaged, or is not of these tensors.
    """
    try:
        description = Description.from_dict(json.loads(tensors.metadata[_KEY]))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{tensors.path}: {error}") from error
    shapes = shapes_of(description.architecture)
    rows = [Row(path, (path,), SAME) for path in shapes]
    pieces = {name: Piece(name) for name in tensors.specs}
    return description, unflatten(read_params(tensors, pieces, rows, shapes))


def as_single_file(
    description: Description, params: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata that `read_single_file` reads."""
    arrays = {
        path: np.ascontiguousarray(leaf) for path, leaf in flatten(params).items()
    }
    return arrays, {_KEY: json.dumps(description.to_dict())}
