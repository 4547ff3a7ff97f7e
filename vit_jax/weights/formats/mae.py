"""The format of facebookresearch/mae's files with a decoder (arXiv:2111.06377).

The encoder has timm's names. Files of the encoder alone, and fine-tuned ones, are thus
files in timm's format.
"""

from collections.abc import Iterable, Mapping, Sequence

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, ViTOrMixer
from vit_jax.models.decoder import DecoderFacts
from vit_jax.weights.files.tensors import Spec
from vit_jax.weights.formats import timm
from vit_jax.weights.formats.layout import (
    NO_HINTS,
    SAME,
    DecoderTable,
    Format,
    Hints,
    Piece,
    Reading,
    Row,
    Shapes,
    positions,
)
from vit_jax.weights.formats.prefixes import find_prefix
from vit_jax.weights.formats.shapes import numbers, sizes
from vit_jax.weights.formats.torch_layers import (
    QKV,
    fused,
    heads_by_sizes,
    linear,
    norm,
    of_any_block,
)

# Names without which a file has no decoder of this kind.
_ENDS = ("decoder_embed.weight", "decoder_pred.weight")
_DECODER = ("decoder_", "mask_token")
_BLOCKS = "decoder_blocks."
_HEADS = 16  # in the published code, whatever the width
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_EVAL = (
    "resize_small(256, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')"
)


def _recognises(names: Iterable[str]) -> bool:
    names = list(names)
    if not timm.FORMAT.recognises(names):
        return False
    return all(any(name.endswith(end) for name in names) for end in _ENDS)


def _pieces(specs: Mapping[str, Spec], hints: Hints = NO_HINTS) -> dict[str, Piece]:
    prefix = find_prefix(specs, timm.FORMAT.anchors, hints.prefix)
    pieces = timm.FORMAT.pieces(specs, hints)
    for name in specs:
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner.startswith(_DECODER):
            pieces[inner] = Piece(name)
    return pieces


def _read(shapes: Shapes, hints: Hints) -> Reading:
    encoder = {n: s for n, s in shapes.items() if not n.startswith(_DECODER)}
    reading = timm.FORMAT.read(encoder, hints)
    a = reading.architecture
    if not a.num_classes:
        heads = [said for said in reading.assumed if "the head reads" not in said]
        reading = reading._replace(assumed=tuple(heads))
    if hints.config or hints.preprocessing is not None or a.channels != len(MEAN):
        return reading
    usual = Preprocessing(a.image_size, a.channels, _usual(a.image_size), MEAN, STD)
    kept = [said for said in reading.assumed if "complete preprocessing" not in said]
    sentence = (
        f"the file does not record the preprocessing: assumed that of MAE, mean {MEAN},"
        f" standard deviation {STD} and {usual.eval_transform!r}"
    )
    return reading._replace(preprocessing=usual, assumed=(*kept, sentence))


def _usual(size: tuple[int, int]) -> str:
    """Returns the evaluation of the published code, which has a margin up to 224."""
    if size == (224, 224):
        return _EVAL
    return "resize_small(interpolation='bicubic_antialias', rounding='down')|" + (
        "central_crop(rounding='nearest')"
    )


def _inexpressible(architecture: ViTOrMixer) -> list[str]:
    a = architecture
    problems = timm.FORMAT.inexpressible(a)
    if isinstance(a, MixerArchitecture):
        return problems
    has = {
        "no class token": not a.class_token,
        "a class token without a position": (
            a.class_token and not a.class_token_position
        ),
        "a distillation token": a.distillation_token,
        "register tokens": a.registers,
        "LayerScale": a.layer_scale,
        "a trunk": a.trunk is not None,
        "attention pooling": a.pooling == "map",
        "the norm after pooling": a.norm == "after_pool",
    }
    return problems + [phrase for phrase, present in has.items() if present]


def _lost(architecture: ViTOrMixer, preprocessing: Preprocessing) -> list[str]:
    a, p = architecture, preprocessing
    assert isinstance(a, Architecture)
    differs = {
        f"the number of attention heads, {a.num_heads}: load it with "
        f"num_heads={a.num_heads}": a.num_heads != _usual_heads(a),
        "the tanh form of GELU: the published code has the exact one": (
            a.gelu != "exact"
        ),
        f"the norms' epsilon, {a.layernorm_epsilon:g}: the published code has 1e-06": (
            a.layernorm_epsilon != 1e-6
        ),
        f"that images are normalised by mean {p.mean} and standard deviation {p.std}: "
        f"the published code has {MEAN} and {STD}": (
            (tuple(p.mean), tuple(p.std)) != (MEAN, STD)
        ),
    }
    return [
        f"the file does not record {what}" for what, holds in differs.items() if holds
    ]


def _usual_heads(a: Architecture) -> int:
    """Returns the number of heads that a reader assumes; 0 = none."""
    try:
        return heads_by_sizes(a.width, a.depth, a.mlp_dim)[0]
    except UserError:
        return 0


def _read_decoder(shapes: Shapes, reading: Reading, hints: Hints) -> Reading:
    wanted = {
        "decoder_embed.weight": 2,
        "mask_token": 3,
        "decoder_pos_embed": 3,
        of_any_block(shapes, _BLOCKS, "mlp.fc1.weight"): 2,
    }
    embed, _, _, hidden = sizes(shapes, wanted)
    width, heads, assumed = embed[0], hints.decoder_heads, reading.assumed
    if not heads:
        if width % _HEADS:
            raise UserError(
                "the file does not record the number of the decoder's attention heads, "
                f"and its width {width} is not a multiple of {_HEADS}, the published "
                "number: pass decoder_heads="
            )
        heads = _HEADS
        said = f"assumed {heads} attention heads in the decoder, the published number"
        assumed = (*assumed, f"{said}; if that is wrong, pass decoder_heads=")
    decoder = DecoderFacts(
        width=width,
        depth=len(numbers(shapes, _BLOCKS, ".")),
        mlp_dim=hidden[0],
        num_heads=heads,
        posemb="learned",
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in shapes),
    )
    return reading._replace(decoder=decoder, assumed=assumed)


def _decoder_rows(encoder: Architecture, decoder: DecoderFacts) -> list[Row]:
    prefix = encoder.num_prefix_tokens
    ours = ("decoder/pos_embed_prefix", "decoder/pos_embed")
    rows = [
        Row("mask_token", ("decoder/mask_token",), SAME),
        Row(
            "decoder_pos_embed",
            ours if prefix else ours[1:],
            positions(encoder.grid, prefix),
        ),
    ]
    rows += linear("decoder_embed", "decoder/embed")
    for i in range(decoder.depth):
        theirs, ours = f"{_BLOCKS}{i}", f"decoder/blocks_{i:02d}"
        rows += norm(f"{theirs}.norm1", f"{ours}/norm1")
        qkv = fused(f"{theirs}.attn.qkv", f"{ours}/attention", QKV)
        rows += qkv if decoder.qkv_bias else qkv[:1]
        rows += linear(f"{theirs}.attn.proj", f"{ours}/attention/out")
        rows += norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1")
        rows += linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2")
    rows += norm("decoder_norm", "decoder/norm")
    return rows + linear("decoder_pred", "decoder/pred")


def _lost_of_decoder(decoder: DecoderFacts, lost: Sequence[str]) -> list[str]:
    target = {None: "", True: "pixels normalised within each patch", False: "pixels"}
    lost = [*lost]
    if what := target[decoder.normalize_pixels]:
        lost.append(
            f"the file does not record that the decoder predicts {what}: load it with "
            f"normalize_pixels={decoder.normalize_pixels}"
        )
    if decoder.num_heads != _HEADS:
        lost.append(
            f"the file does not record the decoder's {decoder.num_heads} attention "
            f"heads: load it with decoder_heads={decoder.num_heads}"
        )
    return lost


FORMAT = Format(
    name="mae",
    title="Meta's MAE",
    anchors=timm.FORMAT.anchors,
    recognises=_recognises,
    pieces=_pieces,
    read=_read,
    rows=timm.FORMAT.rows,
    inexpressible=_inexpressible,
    lost=_lost,
    decoder=DecoderTable(
        read=_read_decoder,
        rows=_decoder_rows,
        needed=True,
        lost=_lost_of_decoder,
    ),
)
