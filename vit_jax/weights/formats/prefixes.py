"""Removal of the prefix that training scripts put in front of a format's names.

There is no list of prefixes: whatever stands in front of a format's characteristic
names is one, such as "module.", "net.vit." or "teacher.backbone.".
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from vit_jax.weights.files.entries import is_training_state, rank

# Parts that PyTorch puts inside of names, around a module that it wraps.
_INNER = re.compile(
    r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


class Anchors(NamedTuple):
    """Patterns that find the names of a format behind any prefix.

    Each has a group `prefix`, and matches from the beginning of a name.

    Attributes:
      stem: names of the first layer, which a model has once.
      blocks: names in the blocks; used alone if the first layer is missing.
    """

    stem: re.Pattern[str]
    blocks: re.Pattern[str]


def anchors(stem: str, blocks: str, separator: str = ".") -> Anchors:
    """Makes the anchors of a format.

    Args:
      stem: pattern of the names of the first layer, without a prefix.
      blocks: pattern of names in the blocks, without a prefix.
      separator: character between the parts of a name.
    """
    part = rf"[^{re.escape(separator)}]+{re.escape(separator)}"
    # Lazily, so that the first place in a name counts where a pattern fits several.
    prefix = rf"(?P<prefix>(?:{part})*?)"
    return Anchors(
        re.compile(f"{prefix}(?:{stem})"), re.compile(f"{prefix}(?:{blocks})")
    )


def find_prefixes(names: Iterable[str], anchors: Anchors) -> list[str]:
    """Lists the prefixes behind which a model may lie, the most likely one first.

    Returns:
      Prefixes with their last separator; [] if no name is one of the format's.
    """
    names = list(names)
    stems, blocks = (
        dict.fromkeys(match["prefix"] for n in names if (match := pattern.match(n)))
        for pattern in anchors
    )
    # A first layer without blocks is that of another kind of model, such as a Swin.
    found = [prefix for prefix in stems if prefix in blocks] or list(stems)
    weights = [p for p in found or blocks if not is_training_state(split(p))]
    if not found and len(weights) > 1:
        return []  # the stages of one model of another kind
    return sorted(weights or found, key=order)


def find_prefix(
    names: Iterable[str], anchors: Anchors, chosen: str | None = None
) -> str:
    """Returns the prefix of the model's names: the chosen one, or the most likely."""
    if chosen is not None:
        return chosen
    return next(iter(find_prefixes(names, anchors)), "")


def order(prefix: str) -> tuple[bool, tuple[int, ...]]:
    """Returns the rank of a prefix: names without a prefix come first."""
    return bool(prefix), rank(split(prefix))


def split(prefix: str) -> list[str]:
    """Splits a prefix into its parts: `split("module.vit.") == ["module", "vit"]`."""
    return [part for part in re.split("[./]", prefix) if part]


def without_inner_wrappers(names: Collection[str]) -> dict[str, str]:
    """Removes the wrappers inside of names: cleaned name → name.

    A name that would then occur twice stays unchanged.
    """
    cleaned: dict[str, str] = {}
    for name in names:
        new = _INNER.sub("", name)
        taken = new in cleaned or (new != name and new in names)
        cleaned[name if taken else new] = name
    return cleaned
