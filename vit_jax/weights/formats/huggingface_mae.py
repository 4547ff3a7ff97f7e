"""The decoder of masked autoencoders in Hugging Face's format (ViTMAE)."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from vit_jax.models import Architecture
from vit_jax.models.decoder import DecoderFacts
from vit_jax.weights.formats.companion import COUNT, FLAG, check_agreement, entry
from vit_jax.weights.formats.layout import (
    SAME,
    DecoderTable,
    Hints,
    Piece,
    Reading,
    Row,
    Shapes,
    positions,
)
from vit_jax.weights.formats.shapes import numbers, sizes
from vit_jax.weights.formats.torch_layers import (
    check_heads,
    linear,
    linear_without_bias,
    norm,
)

_PREFIX = "decoder."
_ENDS = (f"{_PREFIX}decoder_embed.weight", f"{_PREFIX}decoder_pred.weight")
_LAYER = f"{_PREFIX}decoder_layers."
# The name that version 5 writes, which it makes of the published one as of "layers.".
_LAYER_OF_5 = f"{_PREFIX}decoder_encoder.layer."
_HEADS = 16  # the library's default


def decoder_pieces(
    wrapper: str, names: Collection[str], renames: Sequence[tuple[str, str]]
) -> dict[str, Piece]:
    """Finds the tensors of a decoder: the table's name → place; {} if there is none.

    Args:
      wrapper: prefix of all names of the model.
      names: names without it.
      renames: patterns of names in memory, and the names in files.
    """
    pieces: dict[str, Piece] = {}
    for name in names if has_decoder(names) else ():
        if not name.startswith(_PREFIX):
            continue
        renamed = name.replace(_LAYER_OF_5, _LAYER)
        for pattern, replacement in renames:
            renamed = re.sub(pattern, replacement, renamed)
        pieces[name if renamed in pieces else renamed] = Piece(wrapper + name)
    return pieces


def has_decoder(names: Collection[str]) -> bool:
    """Returns whether these names, without a wrapper's prefix, include a decoder's."""
    return all(end in names for end in _ENDS)


def _read(shapes: Shapes, reading: Reading, hints: Hints) -> Reading:
    if not has_decoder(shapes):
        return reading
    layers = numbers(shapes, _LAYER, ".")
    first = next(
        (i for i in layers if f"{_LAYER}{i}.intermediate.dense.weight" in shapes), 0
    )
    embed, _, _, hidden = sizes(
        shapes,
        {
            _ENDS[0]: 2,
            f"{_PREFIX}mask_token": 3,
            f"{_PREFIX}decoder_pos_embed": 3,
            f"{_LAYER}{first}.intermediate.dense.weight": 2,
        },
    )
    told, width, assumed = hints.config, embed[0], reading.assumed
    check_agreement(
        [
            ("decoder_hidden_size", entry(told, "decoder_hidden_size", COUNT), width),
            (
                "decoder_num_hidden_layers",
                entry(told, "decoder_num_hidden_layers", COUNT),
                len(layers),
            ),
            (
                "decoder_intermediate_size",
                entry(told, "decoder_intermediate_size", COUNT),
                hidden[0],
            ),
        ]
    )
    heads = entry(told, "decoder_num_attention_heads", COUNT) or hints.decoder_heads
    if not heads:
        heads = _HEADS
        said = f"assumed {heads} attention heads in the decoder, the library's default"
        assumed = (*assumed, f"{said}; if that is wrong, pass decoder_heads=")
    normalize = entry(told, "norm_pix_loss", FLAG, False if told else None)
    decoder = DecoderFacts(
        width=width,
        depth=len(layers),
        mlp_dim=hidden[0],
        num_heads=check_heads(heads, width, "decoder_heads"),
        normalize_pixels=normalize,
        posemb="learned",
        qkv_bias=any(
            name.startswith(_LAYER) and name.endswith(".query.bias") for name in shapes
        ),
    )
    return reading._replace(decoder=decoder, assumed=assumed)


def _rows(encoder: Architecture, decoder: DecoderFacts) -> list[Row]:
    rows = [
        Row(f"{_PREFIX}mask_token", ("decoder/mask_token",), SAME),
        Row(
            f"{_PREFIX}decoder_pos_embed",
            ("decoder/pos_embed_prefix", "decoder/pos_embed"),
            positions(encoder.grid, encoder.num_prefix_tokens),
        ),
    ]
    rows += linear(f"{_PREFIX}decoder_embed", "decoder/embed")
    projection = linear if decoder.qkv_bias else linear_without_bias
    for i in range(decoder.depth):
        theirs, ours = f"{_LAYER}{i}", f"decoder/blocks_{i:02d}"
        rows += norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
        for part in ("query", "key", "value"):
            rows += projection(
                f"{theirs}.attention.attention.{part}", f"{ours}/attention/{part}"
            )
        rows += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out")
        rows += norm(f"{theirs}.layernorm_after", f"{ours}/norm2")
        rows += linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1")
        rows += linear(f"{theirs}.output.dense", f"{ours}/mlp/fc2")
    rows += norm(f"{_PREFIX}decoder_norm", "decoder/norm")
    return rows + linear(f"{_PREFIX}decoder_pred", "decoder/pred")


def _companions(companions: dict[str, Any], decoder: DecoderFacts) -> dict[str, Any]:
    config = companions["config.json"] | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": decoder.mlp_dim,
        "mask_ratio": 0.75,
        # Also if nothing is recorded, which is the library's default then.
        "norm_pix_loss": bool(decoder.normalize_pixels),
    }
    return companions | {"config.json": config}


def _lost(decoder: DecoderFacts, lost: Sequence[str]) -> list[str]:
    # Only other models without a head get a pooler.
    kept = [sentence for sentence in lost if "untrained pooler" not in sentence]
    if decoder.normalize_pixels is not None:
        return kept
    return [
        *kept,
        "nothing records what the decoder predicts: config.json says norm_pix_loss "
        "false, the library's default",
    ]


DECODER_TABLE = DecoderTable(
    read=_read, rows=_rows, prefix="vit.", companions=_companions, lost=_lost
)
