"""What a model says of where its arrays lie; one device is all a model knows of."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of a model lie on the devices; here: as they are.

    The steps give a model the layout of their mesh, `vit_jax.sharding.MeshLayout`.
    """

    @property
    def gathers(self) -> bool:
        """Whether a block's parameters are brought together when it runs."""
        return False

    @property
    def device_kind(self) -> str:
        """Of the devices, as JAX calls it; "" = a model need not know."""
        return ""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """The same array, lying as the names of its axes say.

        Args:
          x: activations.
          axes: of each axis "batch", "heads", "hidden" (of an MLP), or None: whole.
        """
        del axes
        return x

    def apart(self, attention: Callable[..., Array]) -> Callable[..., Array]:
        """The same function, run by each device on its own examples and heads.

        Args:
          attention: arrays [b, n, heads, k] → an array of this shape, each example and
            head for itself; what the compiler cannot divide, as a kernel of ours.
        """
        return attention

    def gather(self, params: Any, dtype: Any) -> Any:
        """A block's parameters as the block computes with them.

        Args:
          params: the block's subtree, as it is stored.
          dtype: of the block's matrix products; what travels between devices may
            travel in it.
        """
        del dtype
        return params
