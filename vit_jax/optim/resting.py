"""Optimisers that begin later than others."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def resting(
    optimizer: optax.GradientTransformation, begin: int
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser so that its state does not change before a step.

    What it counts and averages begins with that step, as in PyTorch for a parameter
    that had no gradient (None) before. Its results until then are meaningless.

    Args:
      optimizer: the optimiser of some parameters.
      begin: number of finished updates before its first; `update` takes their present
        number as `step`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        updates, new = inner.update(updates, state, params, **extra)
        begun = extra["step"] >= begin
        return updates, jax.tree.map(lambda x, y: jnp.where(begun, x, y), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
