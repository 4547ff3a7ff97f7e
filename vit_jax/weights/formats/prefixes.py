"""Heads that stand outside of what wraps the other names of a model."""

from collections.abc import Collection, Iterable

from vit_jax.weights.formats.layout import Piece


def outer_heads(
    names: Collection[str], prefix: str, heads: Iterable[str]
) -> dict[str, Piece]:
    """{a head's name: where the file holds it}, if it has none within the prefix.

    As in a classifier of which the encoder is a part: backbone.blocks… and head.weight.
    Whether it fits shows when its shape is compared.

    Args:
      names: of all tensors in the file.
      prefix: of the model's names, such as "module.backbone." or "params/img/".
      heads: by the table.
    """
    heads = list(heads)
    if not prefix or any(prefix + head in names for head in heads):
        return {}
    separator = prefix[-1]
    parts = prefix.split(separator)[:-1]
    # The nearest first.
    for depth in reversed(range(len(parts))):
        outer = "".join(part + separator for part in parts[:depth])
        if found := [head for head in heads if outer + head in names]:
            return {head: Piece(outer + head, beside=True) for head in found}
    return {}
