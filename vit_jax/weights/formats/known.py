"""Foreign formats by name: recognition, and conversion of parameters in and out."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer, abstract_params
from vit_jax.models.decoder import DECODER, DecoderFacts
from vit_jax.models.flexible import fixed, fixed_params, is_flexible
from vit_jax.models.positions import sincos2d
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats import (
    big_vision,
    google,
    huggingface,
    mae,
    mmpretrain,
    timm,
    torchvision,
)
from vit_jax.weights.formats.choosing import choose, what_was_taken
from vit_jax.weights.formats.decoder_positions import (
    shapes_of_decoder,
    with_stored_positions,
    without_fixed_positions,
)
from vit_jax.weights.formats.heads import of_heads
from vit_jax.weights.formats.labels import from_saved
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    Format,
    Hints,
    Piece,
    Reading,
    Row,
    flatten,
    piece_shapes,
    read_params,
    unflatten,
    write_tensors,
)
from vit_jax.weights.formats.other_models import ADAPTED, QUANTIZED, find_kind
from vit_jax.words import did_you_mean, plain, shortened, times

logger = logging.getLogger(__name__)

# In the order in which they are tried on a file's names.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        *(google, big_vision, huggingface, torchvision, mmpretrain),
        *(mae, timm),
    )
}
# Formats that are no layout of a whole model's tensors: our own, and PEFT's adapters.
OWN = {"vit_jax": "vit_jax's own", "peft": "PEFT's"}


def read_tensors(
    tensors: Tensors, hints: Hints | None = None, entry: str = ""
) -> tuple[Reading, dict[str, Any]]:
    """Reads a model's description and its parameters, a nested dict of float32 arrays.

    Args:
      tensors: the opened file.
      hints: facts from outside of it.
      entry: the name of the model in a file with several; see `choose`.

    Raises:
      UserError: the format is unknown; several models may be meant; or names, shapes or
        numbers do not make a model.
    """
    chosen, others = choose(tensors, FORMATS, entry)
    tensors, format = chosen.tensors, chosen.format
    names = [name for name in tensors.specs if name.startswith(chosen.prefix)]
    _check_whole(tensors, names)
    hints = (hints or NO_HINTS)._replace(prefix=chosen.prefix)
    try:
        pieces = format.pieces(tensors.specs, hints)
        read = {piece.name for piece in pieces.values()}
        unread = (name for name in tensors.specs if name not in read)
        heads = [] if of_heads(pieces) else of_heads(unread, chosen.prefix)
        hints = hints._replace(headless=bool(heads))
        shapes = piece_shapes(tensors.specs, pieces)
        reading = format.read(shapes, hints)
        architecture = reading.architecture
        rows = [*(reading.rows or format.rows(architecture))]
        expected = shapes_of(architecture)
        if format.decoder is not None:
            reading = format.decoder.read(shapes, reading, hints)
        if format.decoder is not None and reading.decoder is not None:
            assert isinstance(architecture, Architecture)
            rows += format.decoder.rows(architecture, reading.decoder)
            expected |= shapes_of_decoder(architecture, reading.decoder)
    except ValueError as error:
        raise UserError(
            f"{tensors.path} (in {format.title} format): {error}"
        ) from error
    params = read_params(tensors, pieces, rows, expected, format.ignored)
    reading, params = without_fixed_positions(reading, params)
    placed = [(row, pieces[row.theirs]) for row in rows]
    apart = tuple(c.prefix for c in others if c.prefix and c.entry == chosen.entry)
    own = [name for name in tensors.specs if not name.startswith(apart)]
    sentences = _not_read(own, chosen.prefix, placed, heads)
    taken = what_was_taken(chosen, others)
    if taken and not others:
        logger.info("%s: %s", tensors.path.name, taken)
    names, about_names = reading.class_names, []
    if not names:
        names, about_names = from_saved(tensors.class_names, architecture.num_classes)
    assumed = [*reading.assumed, *([taken] if others else []), *sentences, *about_names]
    reading = reading._replace(class_names=names, assumed=tuple(assumed))
    return reading, unflatten(params)


def to_tensors(
    format: Format,
    architecture: ViTOrMixer,
    params: Mapping[str, Any],
    preprocessing: Preprocessing,
    decoder: DecoderFacts | None = None,
) -> tuple[ViTOrMixer, dict[str, np.ndarray], list[str]]:
    """Converts parameters to the tensors of a format.

    Args:
      format: the format.
      architecture: the model's architecture.
      params: its parameters, and those of the decoder if there is one.
      preprocessing: the model's preprocessing.
      decoder: the decoder, which is left out if the format has no names for it.

    Returns:
      The architecture of the file (with learned positions if the format cannot express
      sin-cos ones, which are then written as numbers); its arrays by name; and a
      sentence for each fact that is lost.

    Raises:
      UserError: lists the features that the format cannot express.
    """
    lost: list[str] = []
    table = format.decoder
    if decoder is None and table is not None and table.needed:
        raise UserError(
            f"{format.title} format is for models with a decoder, and this one has "
            "none: the names of the encoder are those of the format timm"
        )
    if decoder is not None and table is None:
        lost.append(
            f"{format.title} format has no place for the decoder, which is left out"
        )
    written = decoder if table is not None else None
    params = {name: value for name, value in params.items() if name != DECODER} | (
        {DECODER: params[DECODER]} if written is not None else {}
    )
    if is_flexible(architecture):
        lost.append(
            "the flexible patch size: the weights are written for patches of "
            f"{times(architecture.patch_size)} pixels"
        )
        params = fixed_params(params, architecture)
        architecture = fixed(architecture)
    if _has_sincos(architecture) and format.inexpressible(architecture):
        architecture, params = _written_out(
            architecture, params, with_class_token=written is not None
        )
        lost.append("the sin-cos positions are written out as numbers")
    if problems := format.inexpressible(architecture):
        others = [
            other.name
            for other in FORMATS.values()
            if other is not format
            and not other.inexpressible(architecture)
            and not (other.decoder and other.decoder.needed and decoder is None)
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
    rows = format.rows(architecture)
    flat = flatten(params)
    if table is not None and written is not None:
        assert isinstance(architecture, Architecture)
        lost = table.lost(written, lost)
        rows = [row._replace(theirs=f"{table.prefix}{row.theirs}") for row in rows]
        flat, learned = with_stored_positions(architecture, written, flat)
        rows += table.rows(architecture, learned)
    arrays = write_tensors(flat, rows)
    return architecture, arrays | format.regenerated(architecture), lost


def find_format(name: str) -> Format:
    """Returns the format of this name; raises UserError with the nearest name."""
    if name in FORMATS:
        return FORMATS[name]
    choices = [*FORMATS, *OWN]
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


def _check_whole(tensors: Tensors, names: Sequence[str]) -> None:
    """Raises UserError if the weights are those of an adapter, or quantized."""
    kind = find_kind(names, ADAPTED)
    if kind is None:
        matrices = [
            tensors.specs[name].dtype
            for name in names
            if len(tensors.specs[name].shape) >= 2
        ]
        whole = [dtype for dtype in matrices if dtype.kind in "iu"]
        if 2 * len(whole) <= len(matrices):
            return
        kind = QUANTIZED._replace(words=f"quantized weights ({whole[0]})")
    raise UserError(f"{tensors.path} holds {kind.words}. {kind.remedy}")


def _not_read(
    own: Sequence[str],
    prefix: str,
    placed: Sequence[tuple[Row, Piece]],
    heads: Sequence[str],
) -> Iterator[str]:
    """Yields sentences about heads elsewhere, and tensors left out.

    Args:
      own: names in the file, without those of other models.
      prefix: that of the model's names.
      placed: the rows that are read, with their places.
      heads: names of a head that is not understood.
    """
    if beside := [piece.name for _, piece in placed if piece.beside]:
        yield (
            f"used {shortened(beside, plain)}, which lies outside of the model's other "
            "names, as its head"
        )
    renamed = [
        piece.name
        for row, piece in placed
        if row.ours[0].startswith("head/")
        and not piece.beside
        and piece.name != prefix + row.theirs
    ]
    if renamed:
        yield f"used {shortened(renamed, plain)} as the head"
    if heads:
        yield (
            f"left out the head ({shortened(heads, plain, most=4)}), which is not a "
            "single linear layer with a bias on the model's features: the model has 0 "
            "classes; num_classes= makes a new head"
        )
    names = {piece.name for _, piece in placed}.union(heads)
    if left := [name for name in own if name not in names]:
        yield (
            f"left out {len(left)} of {len(own)} tensors, which are not part "
            f"of the model: {shortened(left, plain)}"
        )


def _has_sincos(architecture: ViTOrMixer) -> bool:
    return isinstance(architecture, Architecture) and architecture.posemb == "sincos2d"


def _written_out(
    architecture: Any, params: Mapping[str, Any], *, with_class_token: bool = False
) -> tuple[Architecture, dict[str, Any]]:
    """Turns fixed positions into parameters, which leaves the function unchanged.

    With `with_class_token`, a class token without a position gets one of zeros.
    """
    a = architecture
    positions = {"pos_embed": sincos2d(a.grid, a.width, a.sincos_denominator)}
    learned = dataclasses.replace(
        a, posemb="learned", sincos_denominator=Architecture.sincos_denominator
    )
    if with_class_token and a.class_token and not a.num_position_prefix:
        learned = dataclasses.replace(learned, class_token_position=True)
        shape = (1, learned.num_position_prefix, a.width)
        positions["pos_embed_prefix"] = np.zeros(shape, np.float32)
    return learned, dict(params) | positions
