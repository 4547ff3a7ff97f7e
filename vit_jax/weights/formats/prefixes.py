"""Heads whose names lack the prefix that a model's other names have."""

from collections.abc import Collection, Iterable

from vit_jax.weights.formats.layout import Piece


def outer_heads(
    names: Collection[str], prefix: str, heads: Iterable[str]
) -> dict[str, Piece]:
    """Finds a head outside of the prefix if there is none within it.

    A classifier that wraps an encoder has such names: backbone.blocks… and head.weight.
    Whether the head belongs to the model shows later, when shapes are compared.

    Args:
      names: names of all tensors in the file.
      prefix: prefix of the model's names, such as "module.backbone." or "params/img/".
      heads: the table's names of heads.

    Returns:
      {the table's name: its place in the file}.
    """
    heads = list(heads)
    if not prefix or any(prefix + head in names for head in heads):
        return {}
    separator = prefix[-1]
    parts = prefix.split(separator)[:-1]
    # From the innermost prefix outwards.
    for depth in reversed(range(len(parts))):
        outer = "".join(part + separator for part in parts[:depth])
        if found := [head for head in heads if outer + head in names]:
            return {head: Piece(outer + head, beside=True) for head in found}
    return {}
