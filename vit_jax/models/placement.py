"""The placement of a model's arrays; on its own, a model knows only one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of a model's arrays on one device, which changes nothing.

    Training and evaluation steps replace it by `vit_jax.sharding.MeshPlacement`.
    """

    @property
    def gathers(self) -> bool:
        """Whether a block's parameters are gathered when it runs."""
        return False

    @property
    def device_kind(self) -> str:
        """JAX's name for the kind of device; "" if the model need not know."""
        return ""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Places an array according to the names of its axes.

        Args:
          x: activations.
          axes: for each axis "batch", "heads", "hidden" (of an MLP), or None, which is
            not divided.
        """
        del axes
        return x

    def apart(self, attention: Callable[..., Array]) -> Callable[..., Array]:
        """Makes each device run a function on its own examples and heads.

        Our own kernels need this, because the compiler cannot divide them.

        Args:
          attention: arrays [b, n, heads, k] → an array of this shape, which treats each
            example and head separately.
        """
        return attention

    def gather(self, params: Any, dtype: Any) -> Any:
        """Returns a block's parameters in the form that the block computes with.

        Args:
          params: the block's subtree, as stored.
          dtype: dtype of the block's matrix products; arrays may be sent between
            devices in it.
        """
        del dtype
        return params
