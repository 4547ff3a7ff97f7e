"""What the tables of foreign formats are made of, and how they move parameters.

A format is a list of rows, each of which pairs one foreign tensor with the parameters
of ours that it holds. The same rows read and write.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec, Tensors
from vit_jax.words import plain, shortened

# What weights are saved in. All else is of another kind, such as quantized numbers.
_WEIGHTS = {
    np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
}


class Layout(NamedTuple):
    """How one foreign array holds one or more of ours; both directions are exact.

    Both must work on shapes alone (reshape, transpose, split, concatenate …).
    """

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[..., np.ndarray]


class Row(NamedTuple):
    """One foreign tensor, and the "/"-joined paths of the parameters that it holds."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


class Piece(NamedTuple):
    """Where a file holds what a table calls by another name.

    `index` picks one block of a tensor that stacks them all on its first axis. `beside`
    is a head that stands outside of what wraps the model's other names.
    """

    name: str
    index: int | None = None
    beside: bool = False


class Hints(NamedTuple):
    """What is known besides the tensors."""

    config: Mapping[str, Any] = {}  # a companion config.json
    preprocessor: Mapping[str, Any] = {}  # a companion preprocessor_config.json
    num_heads: int | None = None  # what the caller says
    image_size: tuple[int, int] | None = None  # where the tensors do not tell it
    preprocessing: Preprocessing | None = None  # of the published row
    trained_image_size: tuple[int, int] | None = None  # what the caller is sure of


NO_HINTS = Hints()


class Reading(NamedTuple):
    """What a file's names and shapes, and the hints, say of the model in it."""

    architecture: ViTOrMixer
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # what nothing told, one sentence each
    posemb_resize: str = "bicubic"  # as the family's own code does
    loss: str = "softmax"  # what makes probabilities of the logits


Shapes = Mapping[str, tuple[int, ...]]  # by the table's names


class Format(NamedTuple):
    """A published layout of parameters.

    Attributes:
      name: as `--to=` and `save(format=)` take it.
      title: in messages, such as "Google's .npz".
      recognises: whether the names in a file are of this format.
      pieces: the specs of a file, and hints → {the table's name: where the file holds
        it}. Undoes outer prefixes, older generations of names and stacked blocks. A
        name that it does not know stays as it is, so that it is reported; what lies
        beside an outer prefix (optimizer states, a text tower) is left out, but for a
        head.
      read: shapes by the table's names → what they are of. Raises UserError if they are
        of no model that can be expressed, or something must be asked for.
      rows: the table for an architecture.
      inexpressible: what of an architecture the format has no place for, a phrase each.
      ignored: names, by the table, that may be in a file and are not needed.
      lost: what of an expressible model is not in its files, a sentence each: numerics
        that readers of the format set themselves.
    """

    name: str
    title: str
    recognises: Callable[[Iterable[str]], bool]
    pieces: Callable[[Mapping[str, Spec], Hints], dict[str, Piece]]
    read: Callable[[Shapes, Hints], Reading]
    rows: Callable[[ViTOrMixer], list[Row]]
    inexpressible: Callable[[ViTOrMixer], list[str]]
    lost: Callable[[ViTOrMixer, Preprocessing], list[str]]
    ignored: tuple[str, ...] = ()


def one(read: Callable, write: Callable) -> Layout:
    """A layout of a single parameter."""
    return Layout(lambda array: (read(array),), write)


SAME = one(lambda x: x, lambda x: x)
# PyTorch's Linear: [out, in].
TRANSPOSED = one(np.transpose, np.transpose)
# PyTorch's Conv2d: OIHW.
OIHW = one(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))


def reshaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Layout:
    """The same numbers in the same order, in another shape.

    Read with dimensions of one anywhere, which change nothing.
    """

    def read(x):
        if [n for n in x.shape if n != 1] != [n for n in theirs if n != 1]:
            raise ValueError(f"expected {theirs}, got {x.shape}")
        return x.reshape(ours)

    return one(read, lambda x: x.reshape(theirs))


def split(parts: int, inner: Layout = SAME) -> Layout:
    """Several parameters of one shape, each laid out as `inner`, on the first axis."""
    return Layout(
        lambda x: [inner.read(part)[0] for part in np.split(x, parts)],
        lambda *xs: np.concatenate([inner.write(x) for x in xs]),
    )


def positions(grid: tuple[int, int], prefix: int) -> Layout:
    """[1, prefix + gh·gw, d] ↔ pos_embed_prefix [1, prefix, d], pos_embed of a grid.

    With `prefix` 0 there is only pos_embed.
    """

    def read(x):
        grid_rows = x[:, prefix:].reshape(1, *grid, x.shape[-1])
        return (x[:, :prefix], grid_rows) if prefix else (grid_rows,)

    def write(*parts):
        rows = [part.reshape(1, -1, part.shape[-1]) for part in parts]
        return np.concatenate(rows, axis=1) if prefix else rows[0]

    return Layout(read, write)


def read_params(
    tensors: Tensors,
    pieces: Mapping[str, Piece],
    rows: Sequence[Row],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Reads what the rows name, in float32.

    Args:
      tensors: the opened file.
      pieces: where it holds the table's names.
      rows: the table.
      expected: shapes of our parameters, by "/"-joined path.
      ignored: the table's names that need no row.

    Returns:
      Arrays by "/"-joined path. They may be views of what was read.

    Raises:
      UserError: lists every tensor that is missing, unexpected, of another shape or of
        no floating type, at most ten each, before anything is read; or names one that
        is not finite.
    """
    _check(tensors, pieces, rows, expected, ignored)
    params: dict[str, np.ndarray] = {}
    stacks: dict[str, np.ndarray] = {}
    for row in rows:
        name, index, _ = pieces[row.theirs]
        if index is None:
            array = _finite(tensors, name)
        else:
            # Blocks stay views of their stack: nothing is read or held twice.
            if name not in stacks:
                stacks[name] = _finite(tensors, name)
            array = stacks[name][index]
        params |= zip(row.ours, row.layout.read(array), strict=True)
    return params


def write_tensors(
    params: Mapping[str, np.ndarray], rows: Sequence[Row]
) -> dict[str, np.ndarray]:
    """The inverse of `read_params`: foreign arrays by the table's names, contiguous."""
    return {
        row.theirs: np.ascontiguousarray(
            row.layout.write(*(as_weights(params[path]) for path in row.ours))
        )
        for row in rows
    }


def unnamed_kinds(
    architecture: Architecture,
    mlps: Collection[str],
    norms: Collection[str] = ("layernorm",),
) -> list[str]:
    """Kinds of layers in a model's blocks that a format has no names for, in words.

    Args:
      architecture: of the model.
      mlps: kinds of MLPs that the format's tables have.
      norms: kinds of norms that they have.
    """
    kinds = (
        ("MLPs", architecture.mlp_type, mlps),
        ("norms", architecture.norm_type, norms),
    )
    return [
        f"{layers} of the kind {kind!r}"
        for layers, kind, named in kinds
        if kind not in named
    ]


def as_weights(array: Any) -> np.ndarray:
    """The array in a type that weights are saved in, float32 if it is of another."""
    array = np.asarray(array)
    return array if array.dtype in _WEIGHTS else array.astype(np.float32)


def piece_shapes(
    specs: Mapping[str, Spec], pieces: Mapping[str, Piece]
) -> dict[str, tuple[int, ...]]:
    """Shapes by the table's names."""
    return {
        theirs: specs[piece.name].shape[0 if piece.index is None else 1 :]
        for theirs, piece in pieces.items()
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary's leaves by "/"-joined path."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _check(tensors, pieces, rows, expected, ignored):
    shapes = piece_shapes(tensors.specs, pieces)
    names = {row.theirs for row in rows}
    kinds = {
        "missing": map(plain, sorted(names - shapes.keys())),
        "unexpected": map(plain, sorted(shapes.keys() - names - set(ignored))),
        "of another shape": [
            difference
            for row in rows
            if row.theirs in shapes
            and (difference := _difference(row, shapes[row.theirs], expected))
        ],
        "of a type that weights are not saved in": [
            f"{plain(name)} ({dtype})"
            for name in dict.fromkeys(
                pieces[row.theirs].name for row in rows if row.theirs in pieces
            )
            if (dtype := tensors.specs[name].dtype) not in _WEIGHTS
        ],
    }
    lines = [
        f"  {len(found)} {kind}: {shortened(found)}"
        for kind, listed in kinds.items()
        if (found := list(listed))
    ]
    if lines:
        raise UserError(
            f"{tensors.path} does not hold the model that it looks like. Use a "
            "complete and unchanged copy, or save the model again with these put "
            "right:\n" + "\n".join(lines)
        )


def _difference(row: Row, shape: tuple[int, ...], expected) -> str:
    """What is wrong with a foreign tensor's shape; "" if nothing is."""

    def empty(shape):
        # Of any shape in no memory: the layout is tried on it.
        return np.broadcast_to(np.zeros((), np.float32), shape)

    wanted = row.layout.write(*(empty(expected[path]) for path in row.ours)).shape
    try:
        found = [part.shape for part in row.layout.read(empty(shape))]
        fits = found == [expected[path] for path in row.ours]
    except ValueError:
        fits = False
    return "" if fits else f"{plain(row.theirs)} (expected {wanted}, found {shape})"


def _finite(tensors: Tensors, name: str) -> np.ndarray:
    array = np.asarray(tensors.read(name), np.float32)
    flat = array.reshape(-1)
    # NaN and infinity survive in the sum of squares, which costs no memory; so large
    # numbers that it overflows are looked at one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(np.dot(flat, flat))
    if suspicious and (count := int(np.count_nonzero(~np.isfinite(flat)))):
        raise UserError(
            f"{tensors.path}: the tensor {plain(name)} has {count} of {flat.size} "
            "values that are NaN or infinite; the file is damaged, or its training "
            "diverged. Use another copy or an earlier checkpoint"
        )
    return array
