"""Formulations of attention on the devices at hand: right or wrong, and how fast."""

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

REFERENCE = "xla"  # what the others are compared with
# Of the largest value: what rounding to bfloat16 explains, twice over.
_TOLERANCE = 0.02
_REPETITIONS = 10


class Trial:
    """Runs formulations on the same random data, compares and times them.

    The processes of a run try each formulation together; one that fails in any of them
    has failed in all.

    Attributes:
      milliseconds: of each that gave the right values, forward and backward; the
        median of a few runs.
      problems: of each other one what it did, as in "it fails".
    """

    def __init__(self, mesh: Mesh, shape: tuple[int, int, int, int], dtype: Any):
        """Makes the data.

        Args:
          mesh: the devices.
          shape: images, tokens, heads and channels of a head, of all devices together.
          dtype: of query, key and value.
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
        """Tries a formulation, of which the first has to be the reference."""
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
            self.problems[name] = f"is {error:.1%} of the largest value off"
        else:
            self.milliseconds[name] = 1000 * seconds

    def fastest(self) -> str:
        """The fastest that is right; the reference if nothing is known to be."""
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
        """Of the output and three gradients, as a part of each one's largest value."""

        def error(found, expected):
            found, expected = (x.astype(jnp.float32) for x in (found, expected))
            difference = jnp.abs(found - expected)
            # The largest value of several devices need not be the NaN of one.
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
        """An exception becomes the formulation's problem."""
        try:
            yield
        except Exception as error:  # whatever a compiler or a device may say
            first = str(error).strip().partition("\n")[0]
            self.problems[name] = f"fails ({type(error).__name__}: {first[:200]})"

    def _fine_everywhere(self, name: str) -> bool:
        failed = np.ravel(multihost_utils.process_allgather(name in self.problems))
        if failed.any():
            where = f"fails in process {np.argmax(failed)}"
            self.problems.setdefault(name, where)
        return not failed.any()
