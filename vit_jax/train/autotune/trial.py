"""Trials of attention formulations on the devices at hand: correctness and speed."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.models.attention.formulations import attend

REFERENCE = "xla"  # the formulation that the others are compared with
# As a share of the largest value: twice the error that rounding to bfloat16 explains.
_TOLERANCE = 0.02
_REPETITIONS = 10


class Trial:
    """A trial that runs formulations on the same random data, compares and times them.

    The processes of a run try each formulation together; if it fails in any of them, it
    has failed in all.

    Attributes:
      milliseconds: formulation → time forward and backward, the median of ten runs;
        only for those with correct results.
      problems: formulation → the verb phrase that says how it failed, as in "fails".
    """

    def __init__(self, mesh: Mesh, shape: tuple[int, int, int, int], dtype: Any):
        """Makes the data.

        Args:
          mesh: the devices.
          shape: images, tokens, heads and channels per head, over all devices.
          dtype: dtype of query, key and value.
        """
        self.milliseconds: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self._placement = sharding.MeshPlacement(mesh)
        self._replicated = sharding.replicated(mesh)
        self._expected: Any = None  # the reference's values

        def random():
            keys = jax.random.split(jax.random.key(0), 4)
            arrays = (jax.random.normal(key, shape, dtype) for key in keys)
            axes = ("batch", None, "heads", None)
            return [self._placement.constrain(x, *axes) for x in arrays]

        self._operands = jax.jit(random)()

    def run(self, name: str) -> None:
        """Tries a formulation; the first one has to be the reference."""
        if self._expected is None and name != REFERENCE:
            self.problems[name] = f"cannot be compared with {REFERENCE}"
            return
        step: Any = None
        values, seconds, error = None, 0.0, 0.0
        with self._noting(name):
            step = self._both_passes(name).lower(*self._operands).compile()
        # All processes run the same programs, so they agree after every stage.
        if not self._fine_everywhere(name):
            return
        with self._noting(name):
            values = jax.block_until_ready(step(*self._operands))
            seconds = self._seconds(step)
        if not self._fine_everywhere(name):
            return
        if name == REFERENCE:
            self._expected = values
        with self._noting(name):
            error = self._largest_error(values)
        if not self._fine_everywhere(name):
            return
        if not error <= _TOLERANCE:
            self.problems[name] = f"is off by {error:.1%} of the largest value"
        else:
            self.milliseconds[name] = 1000 * seconds

    def fastest(self) -> str:
        """Returns the fastest correct formulation; the reference if there is none."""
        times = self.milliseconds
        return min(times, key=times.__getitem__, default=REFERENCE)

    def _both_passes(self, name: str) -> jax.stages.Wrapped:
        def attention(*operands):
            return attend(*operands, implementation=name, placement=self._placement)[0]

        def run(query, key, value, gradient):
            mixed, pull = jax.vjp(attention, query, key, value)
            return mixed, *pull(gradient)

        return jax.jit(run)

    def _largest_error(self, values: Any) -> float:
        """Compares output and three gradients, relative to each one's largest value."""

        def error(found, expected):
            found, expected = (x.astype(jnp.float32) for x in (found, expected))
            difference = jnp.abs(found - expected)
            # A maximum over several devices may miss the NaN of one.
            difference = jnp.where(jnp.isnan(difference), jnp.inf, difference)
            return difference.max() / jnp.abs(expected).max()

        def largest(found, expected):
            return jnp.stack(jax.tree.map(error, list(found), list(expected))).max()

        compare = jax.jit(largest, out_shardings=self._replicated)
        return float(compare(values, self._expected))

    def _seconds(self, step: Callable[..., Any]) -> float:
        found = []
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            jax.block_until_ready(step(*self._operands))
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Turns an exception inside into the formulation's problem."""
        try:
            yield
        except Exception as error:  # compilers and devices may raise anything
            first = str(error).strip().partition("\n")[0]
            self.problems[name] = f"fails ({type(error).__name__}: {first[:200]})"

    def _fine_everywhere(self, name: str) -> bool:
        failed = np.ravel(multihost_utils.process_allgather(name in self.problems))
        if failed.any():
            where = f"fails in process {np.argmax(failed)}"
            self.problems.setdefault(name, where)
        return not failed.any()
