"""Whether the attention kernels do on this machine what they are to do."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.models.attention import attend
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)

# Of the largest value: what rounding to bfloat16 explains, twice over.
_TOLERANCE = 0.02


def with_checked_attention(setup: Setup) -> Setup:
    """The same run, without the kernels where they fail; says so.

    With `model.attention=auto` a TPU gets kernels that no other compiler has seen. Here
    they run once, at the run's own sizes and on all of its devices, beside XLA's
    formulation: forward and backward. A kernel that does not compile, crashes or
    disagrees costs speed and not the run.
    """
    chosen = getattr(setup.model, "attention", "auto")
    if setup.config.model.attention != "auto" or chosen != "pallas":
        return setup
    problem = _problem(setup)
    if problem is None:
        return setup
    logger.warning("attention is XLA's, because the kernels %s", problem)
    return dataclasses.replace(setup, model=setup.model.clone(attention="xla"))


def _problem(setup: Setup) -> str | None:
    a: Any = setup.architecture
    layout = sharding.MeshLayout(setup.mesh)
    images = sharding.batch_parts(setup.mesh)
    shape = (images, a.num_tokens, a.num_heads, a.width // a.num_heads)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), setup.model.dtype) for _ in range(4)]

    def results(implementation: str) -> Any:
        def run(query, key, value, gradient):
            def attention(*operands):
                how = {"implementation": implementation, "layout": layout}
                return attend(*operands, **how)[0]

            mixed, pull = jax.vjp(attention, query, key, value)
            return mixed, *pull(gradient)

        replicated = sharding.replicated(setup.mesh)
        placed = jax.device_put(arrays, replicated)
        return jax.device_get(jax.jit(run, out_shardings=replicated)(*placed))

    expected = results("xla")
    try:
        found = results("pallas")
    except Exception as error:  # whatever a compiler or a device may say
        first = str(error).strip().partition("\n")[0]
        return f"fail ({type(error).__name__}: {first[:200]})"
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if not error <= _TOLERANCE:
            return f"are {error:.1%} of the largest value off"
    return None
