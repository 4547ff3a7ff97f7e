"""Tables of published sizes by name, one row per size."""

import re
from typing import Any, NamedTuple

from vit_jax.words import either, nearest


class Size(NamedTuple):
    """The dimensions of a Vision Transformer (arXiv:2010.11929, Table 1)."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


class Hybrid(NamedTuple):
    """A Vision Transformer on the features of a ResNet."""

    size: str  # a row of `VARIANTS`
    trunk: tuple[int, ...]  # residual units per stage; () is the root alone
    patch: int  # image pixels per token, along each side


class MixerSize(NamedTuple):
    """The dimensions of an MLP-Mixer (arXiv:2105.01601, Table 1)."""

    width: int
    depth: int
    tokens_mlp_dim: int
    mlp_dim: int


VARIANTS: dict[str, Size] = {
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
    "e": Size(1792, 56, 15360, 16),
}

HYBRIDS: dict[str, Hybrid] = {
    # The root halves the image twice before it is cut into 8 × 8 patches, so a token
    # covers 32 pixels despite the published name: its positions are 7 × 7.
    "R+Ti/16": Hybrid("Ti", (), 32),
    "R26+S/32": Hybrid("S", (2, 2, 2, 2), 32),
    "R26+B/32": Hybrid("B", (2, 2, 2, 2), 32),
    "R50+B/16": Hybrid("B", (3, 4, 9), 16),
    "R50+L/32": Hybrid("L", (3, 4, 6, 3), 32),
}

MIXERS: dict[str, MixerSize] = {
    "Mixer-S": MixerSize(512, 8, 256, 2048),
    "Mixer-B": MixerSize(768, 12, 384, 3072),
    "Mixer-L": MixerSize(1024, 24, 512, 4096),
    "Mixer-H": MixerSize(1280, 32, 640, 5120),
}


def parse_variant(name: str) -> dict[str, Any]:
    """Parses the name of a variant into fields of its architecture.

    A name is SIZE/PATCH, as in "B/16" or "Mixer-B/16", or that of a hybrid, as in
    "R50+B/16". Names are case-sensitive ("g" is not "G").

    Returns:
      Fields of `Architecture`, or of `MixerArchitecture` (with `tokens_mlp_dim`).

    Raises:
      ValueError: the name is unknown; the message has the nearest ones.
    """
    if name in HYBRIDS:
        size, trunk, patch = HYBRIDS[name]
        fields = VARIANTS[size]._asdict() | {"trunk": trunk}
        return fields | {"patch_size": (patch, patch)}
    size, _, digits = name.partition("/")
    sizes = VARIANTS | MIXERS
    if size in sizes and re.fullmatch("[1-9][0-9]*", digits):
        return sizes[size]._asdict() | {"patch_size": (int(digits), int(digits))}
    raise ValueError(
        f"unknown variant {name!r}: expected SIZE/PATCH with SIZE one of "
        f"{', '.join(sizes)} and PATCH in pixels, or one of {', '.join(HYBRIDS)}; "
        f"did you mean {either(_nearest(name))}?"
    )


def _nearest(name: str) -> list[str]:
    # Other packages write "ViT-b16", "b_16" or "B16" for "B/16".
    letters = re.sub("^vit[-_]?|[-_/]?[0-9]*$", "", name, flags=re.IGNORECASE)
    digits = re.findall("[1-9][0-9]*$", name) or ["16"]
    hybrid = letters[:1] in "Rr" and bool(re.search("[-_+]", letters))
    if letters and hybrid:
        return nearest(f"{letters}/{digits[0]}", HYBRIDS, cutoff=0)
    sizes = nearest(letters, VARIANTS | MIXERS, cutoff=0)
    return [f"{size}/{digits[0]}" for size in sizes]
