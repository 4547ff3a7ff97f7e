"""The time of the attention kernels, which the compiler does not look into.

It comes from the length of their schedules: the bundles of instructions that a core
issues for one image, one per cycle while nothing stalls, as counted by
`benchmarks/kernel_schedule.py`. The work is a softmax and products over all pairs of
tokens of each head, so other sizes are assumed to need bundles in proportion to
heads · tokens², starting from the nearest size that was counted. Chips that were not
counted are assumed to have v5e's schedules. Each core of a device has its own images.
"""

import re

from vit_jax.plan.chips import CHIPS, Chip
from vit_jax.plan.cost_model.hlo import Operation

KERNELS = ("attention_forward", "attention_backward")
# Chip → {(tokens, heads, channels per head): bundles per image of each of KERNELS}.
BUNDLES = {
    "v4": {
        (197, 12, 64): (5_222, 9_966),
        (257, 16, 80): (15_102, 32_220),
        (577, 12, 64): (2 * 15_129, 2 * 39_962),
    },
    "v5e": {
        (197, 12, 64): (3_060, 6_814),
        (257, 16, 80): (10_664, 23_826),
        (577, 12, 64): (2 * 10_366, 2 * 30_759),
    },
    "v5p": {
        (197, 12, 64): (3_097, 6_904),
        (257, 16, 80): (10_692, 24_109),
    },
    "v6e": {
        (197, 12, 64): (1_782, 4_733),
        (257, 16, 80): (5_014, 13_540),
        (577, 12, 64): (2 * 6_487, 2 * 22_081),
    },
}
_LANES = 128  # per register
_BY_KIND = {CHIPS[name].kind: sizes for name, sizes in BUNDLES.items()}


def seconds(kernel: Operation, chip: Chip) -> float | None:
    """Returns the time of a call with results [b, n, heads · k]; None if unknown."""
    name = kernel.name.partition(".")[0]
    if name not in KERNELS or not chip.clock:
        return None
    images, tokens, width = kernel.leaves[0].shape
    said = re.search(r'kernel_metadata=\{[^}]*"heads": ?"(\d+)"', kernel.attributes)
    heads = int(said[1]) if said else width // 64
    counted = _BY_KIND.get(chip.kind, BUNDLES["v5e"])

    def distance(size: tuple[int, int, int]) -> tuple[bool, int]:
        # Heads whose channels cross the end of a register cost more.
        reaches_over, like_it = (
            bool(_LANES % channels) for channels in (width // heads, size[2])
        )
        return reaches_over != like_it, abs(size[0] - tokens)

    nearest = min(counted, key=distance)
    bundles = counted[nearest][KERNELS.index(name)]
    bundles *= heads / nearest[1] * (tokens / nearest[0]) ** 2
    return images * bundles / chip.clock / chip.cores
