"""How long the attention kernels take: the compiler does not look into them.

What is known is the length of their schedules: bundles of instructions a v5e core
issues for one image, of which it issues one a cycle when nothing stalls
(docs/performance.md, "The kernels"). The work is a softmax and products over all pairs
of tokens of each head, so other sizes are taken to need bundles in proportion to
heads · tokens². Other chips are taken to have schedules of the same length, each core
working on images of its own.
"""

import re

from vit_jax.plan.chips import Chip
from vit_jax.plan.hlo import Operation

# Kernel: {tokens: bundles an image}, of 12 heads with 64 channels.
BUNDLES = {
    "attention_forward": {197: 3_109, 577: 2 * 10_366},
    "attention_backward": {197: 6_917, 577: 2 * 30_197},
}
_HEADS, _CHANNELS = 12, 64


def seconds(kernel: Operation, chip: Chip) -> float | None:
    """Of one call, on the images [b, n, heads · k] that it gives; None = not known."""
    schedules = BUNDLES.get(kernel.name.partition(".")[0])
    if not schedules or not chip.clock:
        return None
    images, tokens, width = kernel.leaves[0].shape
    said = re.search(r'kernel_metadata=\{[^}]*"heads": ?"(\d+)"', kernel.attributes)
    heads = int(said[1]) if said else width / _CHANNELS
    nearest = min(schedules, key=lambda known: abs(known - tokens))
    bundles = schedules[nearest] * heads / _HEADS * (tokens / nearest) ** 2
    return images * bundles / chip.clock / chip.cores
