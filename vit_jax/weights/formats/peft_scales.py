"""One rank and one scale for adapters that have several.

A model here has one rank and one α. Adapters of lower rank are filled with zeros, and
those of another scale have their B multiplied, so they compute the same as before.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.models.lora import TARGETS
from vit_jax.weights.formats.peft_config import PeftConfig


class Piece(NamedTuple):
    """The adapter of one layer.

    Attributes:
      kernel: path of the layer's kernel.
      target: name of the layer in its block.
      a: [in, r].
      b: [r, out].
      scale: the factor of x·A·B.
    """

    kernel: str
    target: str
    a: np.ndarray
    b: np.ndarray
    scale: float


class Common(NamedTuple):
    """The settings that all adapters of a model share.

    Attributes:
      rank: r.
      alpha: α.
      rank_stabilized: whether α is divided by √r instead of r.
      targets: the layers with adapters, in each block.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor of x·A·B."""
        root = math.sqrt(self.rank) if self.rank_stabilized else self.rank
        return self.alpha / root

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `Architecture`."""
        return {
            "lora_rank": self.rank,
            "lora_alpha": self.alpha,
            "lora_rank_stabilized": self.rank_stabilized,
            "lora_targets": self.targets,
        }


def common_of(
    pieces: Sequence[Piece], config: PeftConfig, depth: int
) -> tuple[Common | None, list[str]]:
    """Chooses the rank and scale of all adapters; None if there are none.

    The scale is the one of the config, so that the numbers of most adapters stay as
    they are. Also lists sentences about adapters that are changed.

    Args:
      pieces: the adapters.
      config: the file's settings.
      depth: number of blocks.
    """
    if not pieces:
        return None, []
    ranks = sorted({piece.a.shape[1] for piece in pieces})
    rank, grown = ranks[-1], ranks[-1] / config.rank
    alpha = config.alpha * (math.sqrt(grown) if config.rank_stabilized else grown)
    targets = {piece.target for piece in pieces}
    common = Common(
        rank,
        float(alpha),
        config.rank_stabilized,
        tuple(target for target in TARGETS if target in targets),
    )
    sentences = []
    if len(ranks) > 1:
        sentences.append(
            f"the adapters have the ranks {', '.join(map(str, ranks))}: filled up with "
            f"zeros to {rank}, which changes nothing"
        )
    if absent := depth * len(common.targets) - len(pieces):
        sentences.append(
            f"{absent} of the layers {', '.join(common.targets)} in {depth} blocks "
            "have no adapter: they got one of zeros, which changes nothing and stays "
            "so in training"
        )
    others = [p for p in pieces if not math.isclose(p.scale, common.scale)]
    if others:
        sentences.append(
            f"{len(others)} of {len(pieces)} adapters have another scale than "
            f"{common.scale:g}: their lora_b was multiplied accordingly"
        )
    return common, sentences


def separated(pieces: Sequence[Piece]) -> tuple[list[Piece], list[str]]:
    """Gives queries, keys and values that shared one A an A of their own.

    A layer whose B is zero in all blocks has no adapter, unless those of all layers
    are zero, as before training. Parts of A that its B does not read are left out, so
    that adapters that were put together as blocks have their former rank again.

    Returns:
      The adapters of the layers, and a sentence about them.
    """
    used = {piece.target for piece in pieces if piece.b.any()}
    if not used:
        return [*pieces], []
    found = []
    for piece in pieces:
        read = piece.b.any(axis=1)
        if piece.target in used and read.any():
            found.append(piece._replace(a=piece.a[:, read], b=piece.b[read]))
    sizes = {piece.a.shape for piece in pieces}
    alike = used == {piece.target for piece in pieces} and len(sizes) == 1
    whole = alike and all(piece.a.shape in sizes for piece in found)
    copied = ["queries, keys and values shared one lora_A: each has a copy of its own"]
    return found, copied if whole else []


def padded(
    pieces: Sequence[Piece], common: Common, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Makes the adapters of all blocks: "/"-joined path → array.

    Layers without an adapter get zeros, which change nothing, and which no gradient
    changes either.

    Args:
      pieces: the adapters that there are.
      common: rank, scale and layers of all.
      expected: path → shape of the model's parameters without adapters.
    """
    own = {piece.kernel: piece for piece in pieces}
    made: dict[str, np.ndarray] = {}
    for path, shape in expected.items():
        layer, _, leaf = path.rpartition("/")
        if leaf != "kernel" or not path.startswith("blocks_"):
            continue
        if layer.rpartition("/")[2] not in common.targets:
            continue
        a = np.zeros((shape[0], common.rank), np.float32)
        b = np.zeros((common.rank, shape[1]), np.float32)
        if (piece := own.get(path)) is not None:
            rank = piece.a.shape[1]
            ratio = piece.scale / common.scale
            a[:, :rank] = piece.a
            exact = math.isclose(ratio, 1)
            b[:rank] = piece.b if exact else piece.b * np.float32(ratio)
        made |= {f"{layer}/lora_a": a, f"{layer}/lora_b": b}
    return made
