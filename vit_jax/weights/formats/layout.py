"""Building blocks of the tables of foreign formats, and their application.

A format is a list of rows. Each row pairs one foreign tensor with the parameters of
ours that it holds. The same rows are used to read and to write.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.models.decoder import DecoderFacts
from vit_jax.models.outputs import EXCLUSIVE
from vit_jax.weights.files.tensors import Spec, Tensors
from vit_jax.weights.formats.prefixes import Anchors
from vit_jax.words import plain, shortened

# Dtypes of weights; tensors of other dtypes, such as quantized ones, are refused.
WEIGHTS = {
    np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
}


class Layout(NamedTuple):
    """An exact conversion between one foreign array and one or more of ours.

    Both directions may only reshape, transpose, split, concatenate and the like, so
    that they can be tried on shapes alone.
    """

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[..., np.ndarray]


class Row(NamedTuple):
    """A foreign tensor, and the "/"-joined paths of the parameters that it holds."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


class Piece(NamedTuple):
    """The place in a file of a tensor that the table calls by another name.

    `index` selects one block of a tensor that stacks all blocks on its first axis.
    `beside` marks a head outside of the prefix that the model's other names have.
    """

    name: str
    index: int | None = None
    beside: bool = False


class Hints(NamedTuple):
    """Facts about a model that come from outside of its tensors."""

    config: Mapping[str, Any] = {}  # a companion config.json
    preprocessor: Mapping[str, Any] = {}  # a companion preprocessor_config.json
    num_heads: int | None = None  # passed by the caller
    image_size: tuple[int, int] | None = None  # used if the tensors do not determine it
    preprocessing: Preprocessing | None = None  # from the row of a published model
    trained_image_size: tuple[int, int] | None = None  # passed as certain by the caller
    prefix: str | None = None  # of the model's names; None = the most likely one
    headless: bool = False  # the file has a head that is not understood
    decoder_heads: int | None = None  # passed by the caller


NO_HINTS = Hints()


class Reading(NamedTuple):
    """The description of a model, derived from names, shapes and hints."""

    architecture: ViTOrMixer
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # one sentence per assumption
    posemb_resize: str = "bicubic"  # the method of the family's own code
    outputs: str = EXCLUSIVE  # what the head's outputs mean, a key of `MEANINGS`
    outputs_known: bool = False  # by a companion file or publisher; else assumed
    # The table of the file if it is not the one in which the model would be written.
    rows: tuple[Row, ...] = ()
    decoder: DecoderFacts | None = None  # of a masked autoencoder


# A phrase for `Format.inexpressible`: pooling "cls_gap".
BESIDE = "a head on the class token and the mean of the patches, side by side"

Shapes = Mapping[str, tuple[int, ...]]  # the table's name → shape


class DecoderTable(NamedTuple):
    """A format's table of the decoder of masked autoencoders.

    Attributes:
      read: shapes, description of the encoder, hints → the same with the decoder, if
        the file has one. Its positions are learned ones, because only their numbers can
        show that they are fixed.
      rows: architecture of the encoder, decoder with learned positions → the table.
      prefix: that of the encoder's names in a file with a decoder.
      needed: whether the format is for models with a decoder only.
      companions: content of the JSON files of the encoder, decoder → with the decoder.
      lost: decoder, sentences about the encoder → the sentences about both.
    """

    read: Callable[[Shapes, Reading, Hints], Reading]
    rows: Callable[[Architecture, DecoderFacts], list[Row]]
    prefix: str = ""
    needed: bool = False
    companions: Callable[[dict[str, Any], DecoderFacts], dict[str, Any]] = (
        lambda companions, _: companions
    )
    lost: Callable[[DecoderFacts, Sequence[str]], list[str]] = lambda _, lost: [*lost]


class Format(NamedTuple):
    """A published layout of parameters.

    Attributes:
      name: the value for `--to=` and `save(format=)`.
      title: the name in messages, such as "Google's .npz".
      anchors: the names by which a model of this format is found behind any prefix.
      recognises: names in a file → whether they are of this format.
      pieces: specs of a file, hints → {the table's name: its place in the file}. Undoes
        outer prefixes, older generations of names and stacked blocks. Unknown names
        stay unchanged, so that they are reported; tensors outside of a prefix
        (optimizer states, a text tower) are left out, except for a head. So is a head
        that is not understood.
      read: shapes, hints → description of the model. Raises UserError if no
        `Architecture` expresses the model, or if the user has to pass something.
      rows: architecture → the table.
      inexpressible: architecture → a phrase for each part that the format cannot hold.
      lost: expressible architecture, preprocessing → a sentence for each fact that the
        files do not record, such as numerics that readers of the format set themselves.
      ignored: the table's names that may be in a file and are not needed.
      regenerated: architecture → arrays of `ignored` names that readers of the format
        expect all the same, as the format's own library makes new ones.
      decoder: the table of a masked autoencoder's decoder; None if it has no names.
    """

    name: str
    title: str
    anchors: Anchors
    recognises: Callable[[Iterable[str]], bool]
    pieces: Callable[[Mapping[str, Spec], Hints], dict[str, Piece]]
    read: Callable[[Shapes, Hints], Reading]
    rows: Callable[[ViTOrMixer], list[Row]]
    inexpressible: Callable[[ViTOrMixer], list[str]]
    lost: Callable[[ViTOrMixer, Preprocessing], list[str]]
    ignored: tuple[str, ...] = ()
    regenerated: Callable[[ViTOrMixer], dict[str, np.ndarray]] = lambda _: {}
    decoder: DecoderTable | None = None


def one(read: Callable, write: Callable) -> Layout:
    """Makes the layout of a single parameter."""
    return Layout(lambda array: (read(array),), write)


SAME = one(lambda x: x, lambda x: x)
# PyTorch's Linear: [out, in].
TRANSPOSED = one(np.transpose, np.transpose)
# PyTorch's Conv2d: OIHW.
OIHW = one(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))


def reshaped(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Layout:
    """Makes a layout that changes the shape and keeps the order of the numbers.

    Reading accepts additional or missing dimensions of size 1.
    """

    def read(x):
        if [n for n in x.shape if n != 1] != [n for n in theirs if n != 1]:
            raise ValueError(f"expected {theirs}, got {x.shape}")
        return x.reshape(ours)

    return one(read, lambda x: x.reshape(theirs))


def split(parts: int, inner: Layout = SAME) -> Layout:
    """Makes the layout of several parameters of one shape, joined on the first axis.

    Each of them has the layout `inner`.
    """
    return Layout(
        lambda x: [inner.read(part)[0] for part in np.split(x, parts)],
        lambda *xs: np.concatenate([inner.write(x) for x in xs]),
    )


def positions(grid: tuple[int, int], prefix: int) -> Layout:
    """Makes the layout of positions, with those of `prefix` other tokens first.

    It converts [1, prefix + gh·gw, d] to pos_embed_prefix [1, prefix, d] and pos_embed
    [1, gh, gw, d]. If `prefix` is 0, there is only pos_embed.
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
    """Reads the tensors of all rows, in float32.

    Args:
      tensors: the opened file.
      pieces: the table's name → its place in the file.
      rows: the table.
      expected: "/"-joined path → shape of our parameter.
      ignored: the table's names that need no row.

    Returns:
      "/"-joined path → array. Arrays may be views of those that were read.

    Raises:
      UserError: before anything is read, if tensors are missing, unexpected, of another
        shape or not of a floating type (lists at most ten of each); later, if one is
        not finite (names it).
    """
    _check(tensors, pieces, rows, expected, ignored)
    params: dict[str, np.ndarray] = {}
    stacks: dict[str, np.ndarray] = {}
    for row in rows:
        name, index, _ = pieces[row.theirs]
        if index is None:
            array = read_finite(tensors, name)
        else:
            # Blocks stay views of their stack, so that it is read and held once.
            if name not in stacks:
                stacks[name] = read_finite(tensors, name)
            array = stacks[name][index]
        params |= zip(row.ours, row.layout.read(array), strict=True)
    return params


def write_tensors(
    params: Mapping[str, np.ndarray], rows: Sequence[Row]
) -> dict[str, np.ndarray]:
    """Inverts `read_params`: returns contiguous foreign arrays by the table's names."""
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
    """Lists phrases for what is in the blocks and a format does not name.

    These are kinds of layers, adapters, and prompts.

    Args:
      architecture: the model's architecture.
      mlps: kinds of MLPs in the format's tables.
      norms: kinds of norms in the format's tables.
    """
    kinds = (
        ("MLPs", architecture.mlp_type, mlps),
        ("norms", architecture.norm_type, norms),
    )
    phrases = [
        f"{layers} of the kind {kind!r}"
        for layers, kind, named in kinds
        if kind not in named
    ]
    if architecture.lora_rank:
        phrases.append(
            f"LoRA adapters of rank {architecture.lora_rank} (add them to the kernels "
            "first: --merge, or merge=True in vit_jax.load)"
        )
    if architecture.prompts:
        kind = "deep" if architecture.prompts_deep else "shallow"
        phrases.append(
            f"{architecture.prompts} {kind} prompts, learned tokens that cannot be "
            "merged into its other weights"
        )
    return phrases


def as_weights(array: Any) -> np.ndarray:
    """Converts an array to float32 unless it has one of the dtypes of weights."""
    array = np.asarray(array)
    return array if array.dtype in WEIGHTS else array.astype(np.float32)


def piece_shapes(
    specs: Mapping[str, Spec], pieces: Mapping[str, Piece]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes by the table's names."""
    return {
        theirs: specs[piece.name].shape[0 if piece.index is None else 1 :]
        for theirs, piece in pieces.items()
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dictionary to "/"-joined paths."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
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
            wrong
            for row in rows
            if row.theirs in shapes
            and (wrong := difference(row, shapes[row.theirs], expected))
        ],
        "of a type that weights are not saved in": [
            f"{plain(name)} ({dtype})"
            for name in dict.fromkeys(
                pieces[row.theirs].name for row in rows if row.theirs in pieces
            )
            if (dtype := tensors.specs[name].dtype) not in WEIGHTS
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
            "complete and unchanged copy, or save the model again with these "
            "corrected:\n" + "\n".join(lines)
        )


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array that takes no memory, to try a layout on."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def difference(
    row: Row, shape: tuple[int, ...], expected: Mapping[str, tuple[int, ...]]
) -> str:
    """Describes what is wrong with a foreign tensor's shape; "" if nothing is."""
    wanted = row.layout.write(*(empty(expected[path]) for path in row.ours)).shape
    try:
        found = [part.shape for part in row.layout.read(empty(shape))]
        fits = found == [expected[path] for path in row.ours]
    except (ValueError, IndexError):  # a tensor without dimensions cannot be split
        fits = False
    return "" if fits else f"{plain(row.theirs)} (expected {wanted}, found {shape})"


def read_finite(tensors: Tensors, name: str) -> np.ndarray:
    """Reads a tensor in float32; raises UserError if numbers are not finite."""
    array = np.asarray(tensors.read(name), np.float32)
    flat = array.reshape(-1)
    # NaN and infinity propagate to the sum of squares, which needs no memory. Only if
    # that is not finite, perhaps because it overflowed, each number is checked.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(np.dot(flat, flat))
    if suspicious and (count := int(np.count_nonzero(~np.isfinite(flat)))):
        raise UserError(
            f"{tensors.path}: the tensor {plain(name)} has {count} of {flat.size} "
            "values that are NaN or infinite; the file is damaged, or its training "
            "diverged. Use another copy or an earlier checkpoint"
        )
    return array
