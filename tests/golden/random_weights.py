"""Random weights that their name and shape alone determine, on any machine.

So a reference need not store them, where they would be large.
"""

import math
import zlib

import numpy as np


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers that leave no parameter without effect.

    Scales (norms', LayerScale's) lie around 1, kernels keep the size of what they read,
    biases are small.
    """
    # The legacy generator, whose numbers NumPy promises never to change.
    draw = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if name.endswith("weight") and len(shape) > 1:
        draw *= math.sqrt(3 / math.prod(shape[1:]))
    elif name.endswith(("weight", "gamma")):
        draw = 1 + 0.5 * draw
    elif name.endswith("bias"):
        draw *= 0.3
    return draw.astype(np.float32)
