"""Where a model's arrays lie; by itself a model knows of one device only."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of a model's arrays on one device: as they are.

    The steps give a model the placement on their mesh,
    `vit_jax.sharding.MeshPlacement`.
    """

    @property
    def gathers(self) -> bool:
        """Whether a block's parameters are brought together when it runs."""
        return False

    @property
    def device_kind(self) -> str:
        """JAX's name for the kind of device; "" where a model need not know."""
        return ""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Returns the array, placed as the names of its axes say.

        Args:
          x: activations.
          axes: for each axis "batch", "heads", "hidden" (of an MLP), or None: whole.
        """
        del axes
        return x

    def apart(self, attention: Callable[..., Array]) -> Callable[..., Array]:
        """Makes each device run a function on its own examples and heads.

        Args:
          attention: arrays [b, n, heads, k] → an array of this shape, each example and
            head for itself; for kernels of ours, which the compiler cannot divide.
        """
        return attention

    def gather(self, params: Any, dtype: Any) -> Any:
        """Returns a block's parameters in the form in which the block computes.

        Args:
          params: the block's subtree, as it is stored.
          dtype: of the block's matrix products; what travels between devices may
            travel in it.
        """
        del dtype
        return params
