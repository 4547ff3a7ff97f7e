"""Foreign formats by name: recognition, and conversion of parameters in and out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer, abstract_params
from vit_jax.models.positions import sincos2d
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats import big_vision, google, huggingface, timm
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    Format,
    Hints,
    Piece,
    Reading,
    flatten,
    piece_shapes,
    read_params,
    unflatten,
    write_tensors,
)
from vit_jax.words import did_you_mean, plain, shortened

# In the order in which they are tried on a file's names.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (google, big_vision, huggingface, timm)
}


def recognise_format(tensors: Tensors) -> Format:
    """Finds the format of a file by the names of its tensors.

    Raises:
      UserError: no format recognises the names.
    """
    for format in FORMATS.values():
        if format.recognises(tensors.specs):
            return format
    names = list(tensors.specs)
    shown = shortened(names, plain, most=5)
    titles = ", ".join(format.title for format in FORMATS.values())
    raise UserError(
        f"{tensors.path} holds {len(names)} tensors ({shown or 'none'}) whose names "
        f"are not those of a known format; known are {titles}, and vit_jax's own. "
        "Pass a file in one of these formats"
    )


def read_tensors(
    tensors: Tensors, hints: Hints | None = None
) -> tuple[Reading, dict[str, Any]]:
    """Reads a model's description and its parameters, a nested dict of float32 arrays.

    Raises:
      UserError: the format is unknown, or names, shapes or numbers do not make a model.
    """
    format = recognise_format(tensors)
    hints = hints or NO_HINTS
    try:
        pieces = format.pieces(tensors.specs, hints)
        reading = format.read(piece_shapes(tensors.specs, pieces), hints)
        architecture = reading.architecture
        rows = format.rows(architecture)
    except ValueError as error:
        raise UserError(
            f"{tensors.path} (in {format.title} format): {error}"
        ) from error
    params = read_params(tensors, pieces, rows, shapes_of(architecture), format.ignored)
    read = [pieces[row.theirs] for row in rows]
    assumed = (*reading.assumed, *_not_read(tensors, read))
    return reading._replace(assumed=assumed), unflatten(params)


def to_tensors(
    format: Format,
    architecture: ViTOrMixer,
    params: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> tuple[ViTOrMixer, dict[str, np.ndarray], list[str]]:
    """Converts parameters to the tensors of a format.

    Returns:
      The architecture of the file (with learned positions if the format cannot express
      sin-cos ones, which are then written as numbers); its arrays by name; and a
      sentence for each fact that is lost.

    Raises:
      UserError: lists the features that the format cannot express.
    """
    lost = []
    if _has_sincos(architecture) and format.inexpressible(architecture):
        architecture, params = _written_out(architecture, params)
        lost.append("the sin-cos positions are written out as numbers")
    if problems := format.inexpressible(architecture):
        others = [
            other.name
            for other in FORMATS.values()
            if other is not format and not other.inexpressible(architecture)
        ]
        raise UserError(
            f"{format.title} format cannot express this model: {'; '.join(problems)}. "
            f"Formats that can: {', '.join([*others, 'vit_jax'])}"
        )
    lost += format.lost(architecture, preprocessing)
    if preprocessing.white_level:
        lost.append(
            f"the value of white, {preprocessing.white_level:g}: scale images of more "
            "than 8 bits before readers of the file use them"
        )
    arrays = write_tensors(flatten(params), format.rows(architecture))
    return architecture, arrays, lost


def find_format(name: str) -> Format:
    """Returns the format of this name; raises UserError with the nearest name."""
    if name in FORMATS:
        return FORMATS[name]
    choices = [*FORMATS, "vit_jax"]
    hint = did_you_mean(name, choices)
    raise UserError(f"no format {name!r}: choose from {', '.join(choices)}{hint}")


def shapes_of(architecture: ViTOrMixer) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an architecture's parameters by "/"-joined path."""
    if _has_sincos(architecture):
        # Fixed positions are not parameters; computing them for a huge grid is avoided.
        one_patch = architecture.patch_size
        architecture = dataclasses.replace(architecture, image_size=one_patch)
    leaves = flatten(abstract_params(architecture))
    return {path: leaf.shape for path, leaf in leaves.items()}


def _not_read(tensors: Tensors, read: Iterable[Piece]) -> Iterator[str]:
    """Yields sentences about alternatives, heads elsewhere, and tensors left out."""
    others = tensors.metadata.get("others")
    if tensors.kind == "torch" and others:
        yield (
            f"read the entry {tensors.metadata['wrapper']} of the file, which also has "
            f"{others}"
        )
    if beside := [piece.name for piece in read if piece.beside]:
        yield (
            f"used {shortened(beside, plain)}, which lies outside of the model's other "
            "names, as its head"
        )
    names = {piece.name for piece in read}
    if left := [name for name in tensors.specs if name not in names]:
        yield (
            f"left out {len(left)} of {len(tensors.specs)} tensors, which are not part "
            f"of the model: {shortened(left, plain)}"
        )


def _has_sincos(architecture: ViTOrMixer) -> bool:
    return isinstance(architecture, Architecture) and architecture.posemb == "sincos2d"


def _written_out(
    architecture: Any, params: Mapping[str, Any]
) -> tuple[Architecture, dict[str, Any]]:
    """Turns fixed positions into parameters, which leaves the function unchanged."""
    a = architecture
    positions = {"pos_embed": sincos2d(a.grid, a.width, a.sincos_denominator)}
    learned = dataclasses.replace(
        a, posemb="learned", sincos_denominator=Architecture.sincos_denominator
    )
    return learned, dict(params) | positions
