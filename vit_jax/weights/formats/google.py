"""The format of Google's `.npz` files: ViT, AugReg, SAM, hybrids and MLP-Mixer.

google-research/vision_transformer and its predecessors wrote these files. Names are
those of Flax before Linen; those of Linen are read too. A plain Vision Transformer with
Linen's names is read as big_vision's format, whose oldest files look the same and hold
the same function.
"""

import math
import re
from collections.abc import Iterable, Mapping

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats.flax_layers import (
    ANCHORS,
    BLOCK,
    DENSE,
    LINEN,
    NORM,
    PRE_LINEN,
    encoder,
    encoder_fields,
    head,
    inexpressible_in_both,
    inner_names,
    inner_pieces,
    layer,
    looks_square,
    lost_in_both,
    of_any,
    outputs,
    position_row,
    reading,
    renamed,
    renumbering,
)
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    Format,
    Hints,
    Piece,
    Reading,
    Row,
    Shapes,
    one,
    reshaped,
)
from vit_jax.weights.formats.shapes import grid_of, numbers, sizes

_POSITIONS = "Transformer/posembed_input/pos_embedding"
_MIXER_BLOCK = "MixerBlock_"
_MIXER_NAMES = re.compile(r"MixerBlock_\d+/|Mixer/")
_PRE_LINEN_NAMES = re.compile(rf"{BLOCK}\d+/{PRE_LINEN.attention}/")
_LINEN_NAMES = re.compile(rf"{BLOCK}\d+/{LINEN.attention}/")
# Google's files never have these names; big_vision's may, with either numbering.
_BIG_VISION_NAMES = re.compile(
    r"(Transformer/)?pos_embedding$|MAPHead_\d+/|probe$|Transformer/encoderblock/"
)

# The first Mixer files have a separate module for the blocks, and number dense layers.
_OLD_MIXER = [
    (r"^embedding/", "stem/"),
    (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
    (r"^Mixer/encoderblock_", _MIXER_BLOCK),
    (r"(token|channel)_mixing_phase_0/(kernel|bias)1$", r"\1_mixing/Dense_0/\2"),
    (r"(token|channel)_mixing_phase_0/(kernel|bias)2$", r"\1_mixing/Dense_1/\2"),
]
_RENAMES = [
    *renumbering(LINEN, PRE_LINEN),
    # Mixer's usual files are numbered like Linen; others count all children of a block.
    (rf"^({_MIXER_BLOCK}\d+)/LayerNorm_[2-9]/", r"\1/LayerNorm_1/"),
]

# The published files have [1, 1, 1, c]; big_vision and later code use [c].
_GROUP_NORM = one(lambda x: x.reshape(x.shape[-1:]), lambda x: x.reshape(1, 1, 1, -1))
_EVAL_TRANSFORM = "resize"  # directly to the model's size, bilinear


def _recognises(names: Iterable[str]) -> bool:
    inner = inner_names(names)

    def any_is(pattern):
        return any(pattern.match(name) for name in inner)

    hybrid = "conv_root/kernel" in inner and any_is(_LINEN_NAMES)
    early = any_is(_PRE_LINEN_NAMES) and not any_is(_BIG_VISION_NAMES)
    return hybrid or early or any_is(_MIXER_NAMES)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    pieces = inner_pieces(specs, hints)
    old_mixer = any(name.startswith("Mixer/") for name in pieces)
    return renamed(pieces, (_OLD_MIXER if old_mixer else []) + _RENAMES)


def _read(shapes: Shapes, hints: Hints) -> Reading:
    mixer = any(_MIXER_NAMES.match(name) for name in shapes)
    assumed: list[str] = []
    read = _read_mixer if mixer else _read_vit
    architecture = read(shapes, hints, assumed)
    return reading(architecture, hints, _EVAL_TRANSFORM, tuple(assumed))


def _read_vit(shapes: Shapes, hints: Hints, assumed: list[str]) -> Architecture:
    wanted = {"embedding/kernel": 4, _POSITIONS: 3}
    has_trunk = "conv_root/kernel" in shapes
    if has_trunk:
        wanted["conv_root/kernel"] = 4
    kernel, position, *root = sizes(shapes, wanted)
    trunk = None
    if has_trunk:
        stages = numbers(shapes, "block", "/")
        trunk = tuple(len(numbers(shapes, f"block{i}/unit", "/")) for i in stages)
    # The root divides the image's sides by 4, and each stage but the first by 2.
    stride = 4 * 2 ** max(len(trunk) - 1, 0) if trunk is not None else 1
    patch_size = kernel[0] * stride, kernel[1] * stride
    class_token = "cls" in shapes
    prefixes = [int(class_token)]
    _, grid = grid_of(
        _POSITIONS, position[1], prefixes, patch_size, hints, None, assumed
    )
    return Architecture(
        **encoder_fields(shapes, PRE_LINEN, kernel),
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        channels=root[0][2] if has_trunk else kernel[2],
        pooling="cls" if class_token else "gap",
        class_token=class_token,
        class_token_position=class_token,
        trunk=trunk,
    )


def _read_mixer(shapes: Shapes, hints: Hints, assumed: list[str]) -> MixerArchitecture:
    def bias(part):
        return of_any(shapes, _MIXER_BLOCK, f"{part}/bias")

    # Biases, because the oldest files have additional dimensions of 1 in between.
    first, second, channels = (
        bias(f"{kind}_mixing/Dense_{i}")
        for kind, i in (("token", 0), ("token", 1), ("channel", 0))
    )
    wanted = {"stem/kernel": 4, first: None, second: None, channels: None}
    kernel, *hidden = sizes(shapes, wanted)
    tokens_mlp_dim, tokens, mlp_dim = map(math.prod, hidden)
    patch_size = kernel[0], kernel[1]
    _, grid = grid_of(second, tokens, [0], patch_size, hints, None, assumed)
    return MixerArchitecture(
        width=kernel[3],
        depth=len(numbers(shapes, _MIXER_BLOCK, "/")),
        tokens_mlp_dim=tokens_mlp_dim,
        mlp_dim=mlp_dim,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        num_classes=outputs(shapes, "head"),
        channels=kernel[2],
    )


def _rows(architecture: ViTOrMixer) -> list[Row]:
    if isinstance(architecture, MixerArchitecture):
        return _mixer(architecture)
    a = architecture
    return [*_trunk(a.trunk), *encoder(a, PRE_LINEN), position_row(_POSITIONS, a)]


def _trunk(units: tuple[int, ...] | None) -> list[Row]:
    """Lists the rows of the trunk, whose layers have the same names in our tree."""
    if units is None:
        return []
    places = ["{}_root"]
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            ends = ["1", "2", "3"] + ["_proj"] * (unit == 1)
            places += [f"block{stage}/unit{unit}/{{}}{end}" for end in ends]
    rows = []
    for place in places:
        conv, norm = place.format("conv"), place.format("gn")
        rows += layer(conv, f"trunk/{conv}", ("kernel",))
        rows += layer(norm, f"trunk/{norm}", NORM, _GROUP_NORM)
    return rows


def _mixer(a: MixerArchitecture) -> list[Row]:
    tokens = a.grid[0] * a.grid[1]
    rows = layer("stem", "patch_embed", DENSE)
    for i in range(a.depth):
        theirs, ours = f"{_MIXER_BLOCK}{i}", f"blocks_{i:02d}"
        rows += layer(f"{theirs}/LayerNorm_0", f"{ours}/norm1", NORM)
        rows += layer(f"{theirs}/LayerNorm_1", f"{ours}/norm2", NORM)
        for kind, mlp, outer, inner in (
            ("token", "tokens_mlp", tokens, a.tokens_mlp_dim),
            ("channel", "mlp", a.width, a.mlp_dim),
        ):
            for j, shape in enumerate([(outer, inner), (inner, outer)]):
                dense = f"{theirs}/{kind}_mixing/Dense_{j}", f"{ours}/{mlp}/fc{j + 1}"
                rows += layer(*dense, ("kernel",), reshaped(shape, shape))
                rows += layer(*dense, ("bias",), reshaped(shape[1:], shape[1:]))
    return [*rows, *layer("pre_head_layer_norm", "norm", NORM), *head(a)]


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    if isinstance(architecture, MixerArchitecture):
        return looks_square(architecture)
    a = architecture
    unplaced = a.class_token and not a.class_token_position
    has = {
        "a MAP head": a.pooling == "map",
        "a class token without a position": unplaced,
        "fixed sin-cos positions": a.posemb == "sincos2d",
    }
    phrases = [phrase for phrase in has if has[phrase]]
    return [*inexpressible_in_both(a), *phrases, *looks_square(a)]


def _lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    lost = lost_in_both(architecture, preprocessing, _EVAL_TRANSFORM)
    if isinstance(architecture, MixerArchitecture) or architecture.trunk is None:
        return lost
    if architecture.trunk_numerics != "google":
        lost.append(
            f"readers of the file use Google's epsilons in the trunk, where this model "
            f"has {architecture.trunk_numerics}'s: expect slightly different outputs"
        )
    return lost


FORMAT = Format(
    name="google",
    title="Google's .npz",
    anchors=ANCHORS,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=_rows,
    inexpressible=_inexpressible,
    lost=_lost,
)
