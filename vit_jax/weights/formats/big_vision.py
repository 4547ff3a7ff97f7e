"""The format of big_vision's `.npz` files of Vision Transformers, of all generations.

Files are written in the layout of its newest code, with one exception: if the class
token has a position, that becomes row 0 of the positions. Its oldest files have this
layout, and its loader still splits it.
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.flax_layers import (
    ANCHORS,
    BLOCK,
    LINEN,
    MLPS,
    NORM,
    PRE_LINEN,
    attention,
    encoder,
    encoder_fields,
    inexpressible_in_both,
    inner_names,
    inner_pieces,
    layer,
    looks_square,
    lost_in_both,
    position_row,
    reading,
    renamed,
    renumbering,
)
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    SAME,
    Format,
    Hints,
    Piece,
    Reading,
    Row,
    Shapes,
)
from vit_jax.weights.formats.shapes import grid_of, patches, sizes
from vit_jax.words import times

_POSITIONS = "pos_embedding"
_POSITIONS_WITH_CLASS = "Transformer/posembed_input/pos_embedding"
# From newest to oldest.
_PLACES = (_POSITIONS, "Transformer/pos_embedding", _POSITIONS_WITH_CLASS)
_STACK = "Transformer/encoderblock/"
_USUAL_SIZE = (224, 224)
_DEEPEST = 256  # more blocks than any model has; bounds the work for a damaged file
_MAP_HEAD = "MAPHead_0"
_KINDS = "MultiHeadDotProductAttention|LayerNorm|MlpBlock"

_RENAMES = [
    *renumbering(PRE_LINEN, LINEN),
    # Early files have the parts of the MAP head at the top level, once per kind.
    (rf"^(probe$|(?:{_KINDS})_\d/)", rf"{_MAP_HEAD}/\1"),
    (rf"^{_MAP_HEAD}/({_KINDS})_\d/", rf"{_MAP_HEAD}/\1_0/"),
]
_NAMES = re.compile(
    r"Transformer/encoderblock(_\d+)?/MultiHeadDotProductAttention_[01]/"
)


def _recognises(names: Iterable[str]) -> bool:
    return any(_NAMES.match(name) for name in inner_names(names))


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    pieces: dict[str, Piece] = {}
    for inner, piece in inner_pieces(specs, hints).items():
        name, shape = piece.name, specs[piece.name].shape
        if inner.startswith(_STACK) and shape and shape[0] <= _DEEPEST:
            leaf = inner.removeprefix(_STACK)
            pieces |= {f"{BLOCK}{i}/{leaf}": Piece(name, i) for i in range(shape[0])}
        else:
            pieces[inner] = piece
    found = next((place for place in _PLACES if place in pieces), None)
    if found:
        shape = specs[pieces[found].name].shape
        kernel = pieces.get("embedding/kernel")
        patch_size = _patch_size(specs[kernel.name].shape if kernel else ())
        with_class = "cls" in pieces and _counts_class_token(
            shape,
            found,
            math.prod(patches(hints.trained_image_size, patch_size)),
            math.prod(patches(hints.image_size, patch_size)),
        )
        place = _POSITIONS_WITH_CLASS if with_class else _POSITIONS
        pieces = renamed(pieces, [(f"^{found}$", place)])
    return renamed(pieces, _RENAMES)


def _patch_size(kernel: tuple[int, ...]) -> tuple[int, int]:
    """Reads the patch size off a kernel's shape; it is huge if the kernel is damaged.

    No image has a whole patch of the huge size.
    """
    if len(kernel) == 4 and all(kernel):
        return kernel[0], kernel[1]
    return sys.maxsize, sys.maxsize


def _counts_class_token(
    shape: tuple[int, ...], place: str, sure: int = 0, named: int = 0
) -> bool:
    """Returns whether one of the positions [1, n, d] belongs to the class token.

    `sure` and `named` are the numbers of patches for the caller's two image sizes, 0 if
    not passed.
    """

    def square(count):
        return math.isqrt(count) ** 2 == count

    count = shape[1] if len(shape) == 3 else 0
    # The order of precedence is that of `grid_of`.
    for is_grid in (lambda n: n == sure, square, lambda n: n == named):
        for patches_only, with_class in ((count, False), (count - 1, True)):
            if patches_only > 0 and is_grid(patches_only):
                return with_class
    # No grid matches. Only the oldest code had one position more than patches.
    return place == _POSITIONS_WITH_CLASS


def _read(shapes: Shapes, hints: Hints) -> Reading:
    places = [p for p in (_POSITIONS, _POSITIONS_WITH_CLASS) if p in shapes]
    kernel, *counted = sizes(
        shapes, {"embedding/kernel": 4} | dict.fromkeys(places[:1], 3)
    )
    patch_size = kernel[0], kernel[1]
    fields: dict[str, Any] = {
        "pooling": "cls" if "cls" in shapes else "gap",
        "class_token": "cls" in shapes,
        "class_token_position": places[:1] == [_POSITIONS_WITH_CLASS],
    }
    if any(name.startswith(f"{_MAP_HEAD}/") for name in shapes):
        fields["pooling"] = "map"
    assumed: list[str] = []
    told = hints.trained_image_size or hints.image_size
    if counted:
        prefix = int(fields["class_token_position"])
        # `_pieces` has chosen the name of the positions by whether one is the class's.
        prefixes = [prefix, 1 - prefix] if fields["class_token"] else [prefix]
        prefix, grid = grid_of(
            places[0], counted[0][1], prefixes, patch_size, hints, None, assumed
        )
        fields["class_token_position"] = prefix > 0
    else:
        fields["posemb"] = "sincos2d"
        height, width = patches(told or _USUAL_SIZE, patch_size)
        grid = max(height, 1), max(width, 1)
    architecture = Architecture(
        **encoder_fields(shapes, LINEN, kernel),
        **fields,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        channels=kernel[2],
    )
    if not counted and not told:
        assumed.append(
            f"assumed the image size {times(architecture.image_size)}: the file has no "
            "positions that would determine it"
        )
    transform = _eval_transform(architecture.image_size)
    return reading(architecture, hints, transform, tuple(assumed))


def _eval_transform(image_size: tuple[int, int]) -> str:
    """Returns the chain in big_vision's configs: resize to 256, then crop to 224.

    For 384 the resize is to 448; other sizes use the ratio 256 / 224.
    """
    sides = [448 if side == 384 else round(side * 256 / 224) for side in image_size]
    resized = str(sides[0]) if image_size[0] == image_size[1] else str(tuple(sides))
    return f"resize_small({resized})|central_crop"


def _rows(architecture: ViTOrMixer) -> list[Row]:
    a = architecture
    assert isinstance(a, Architecture)  # `_inexpressible` excludes Mixers
    rows = encoder(a, LINEN)
    if a.posemb == "learned":
        rows.append(position_row(_positions_path(a), a))
    if a.pooling == "map":
        rows += _map_head(a)
    return rows


def _positions_path(a: Architecture) -> str:
    return _POSITIONS_WITH_CLASS if a.class_token_position else _POSITIONS


def _map_head(a: Architecture) -> list[Row]:
    return [
        Row(f"{_MAP_HEAD}/probe", ("map_head/probe",), SAME),
        *attention(
            f"{_MAP_HEAD}/{LINEN.attention}",
            "map_head/attention",
            a.width,
            a.num_heads,
        ),
        *layer(f"{_MAP_HEAD}/LayerNorm_0", "map_head/norm", NORM),
        *MLPS[a.mlp_type](f"{_MAP_HEAD}/{LINEN.mlp}", "map_head/mlp"),
    ]


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    if isinstance(architecture, MixerArchitecture):
        return ["MLP-Mixer (for which big_vision reads Google's format)"]
    a = architecture
    (height, width), learned = a.grid, a.posemb == "learned"
    stored = (1, height * width + a.class_token_position, a.width)
    counted = _counts_class_token(stored, _positions_path(a)) == a.class_token_position
    has = {
        "a ResNet trunk": a.trunk is not None,
        "sin-cos positions with MAE's denominator": (
            not learned and a.sincos_denominator != "big_vision"
        ),
        "a position of the class token in addition to sin-cos ones": (
            not learned and a.class_token_position
        ),
        f"{stored[1]} positions of a class token and {times(a.grid)} patches, which "
        "look like those of a square grid": (learned and a.class_token and not counted),
    }
    phrases = [phrase for phrase in has if has[phrase]]
    return inexpressible_in_both(a) + phrases + (looks_square(a) if learned else [])


def _lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    transform = _eval_transform(architecture.image_size)
    lost = lost_in_both(architecture, preprocessing, transform)
    if isinstance(architecture, Architecture) and architecture.posemb == "sincos2d":
        lost.append(
            "the file does not record the image size, because fixed positions are not "
            "written"
        )
    return lost


FORMAT = Format(
    name="big_vision",
    title="big_vision's .npz",
    anchors=ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=_lost,
)
