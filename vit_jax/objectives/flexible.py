"""Patch sizes drawn step by step, as in FlexiViT (arXiv:2212.08013, section 3.2)."""

import bisect
import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config import Config
from vit_jax.words import pair

Size = tuple[int, int]

# Apart from whatever else is drawn from the run's seed.
_STREAM = 0x666C6578


@dataclasses.dataclass(frozen=True)
class DrawnSizes:
    """A function from the number of a step to its patch size.

    The size depends on the seed and the step alone, and on raw random bits, which are
    the same with every version of NumPy. So all processes draw the same sizes, and a
    run that resumes draws those that it would have drawn.

    Attributes:
      sizes: (height, width) in pixels, in the order of the config.
      frequencies: their relative frequencies.
      seed: that of the run.
    """

    sizes: tuple[Size, ...]
    frequencies: tuple[int, ...]
    seed: int

    @property
    def choices(self) -> tuple[Size, ...]:
        """All sizes, with the one of the most patches and the largest program first."""
        return tuple(sorted(self.sizes, key=lambda size: (math.prod(size), size)))

    def __call__(self, step: int) -> Size:
        """Draws the size for step number `step`."""
        bits = np.random.PCG64((self.seed, _STREAM, step)).random_raw()
        ends = list(itertools.accumulate(self.frequencies))
        return self.sizes[bisect.bisect_right(ends, int(bits) * ends[-1] >> 64)]


def drawn_sizes(config: Config) -> DrawnSizes | None:
    """Returns the patch sizes of a valid config; None if there is only one."""
    flexible = config.flexible
    if not flexible.patch_sizes:
        return None
    sizes = tuple(map(pair, flexible.patch_sizes))
    return DrawnSizes(sizes, flexible.frequencies or (1,) * len(sizes), config.seed)


def at(choice: Any) -> dict[str, Any]:
    """Returns the argument that makes the model compute at a drawn patch size.

    Args:
      choice: the step's, see `Objective.choice`; None = the model's own size.
    """
    return {} if choice is None else {"patch_size": choice}


def drawn(
    choice: Any, rows: Float[Array, " b"]
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns the metrics `patch_height` and `patch_width`, a step's patch size.

    Args:
      choice: the step's; None = there are no such metrics.
      rows: any column of the batch.
    """
    if choice is None:
        return {}
    # Whole numbers, whatever the weights of the examples.
    count = len(rows)
    return {
        name: (jnp.float32(count * side), jnp.float32(count))
        for name, side in zip(("patch_height", "patch_width"), choice, strict=True)
    }
