"""Compilation of a program for a topology, and the compiler's figures for it."""

import dataclasses
import logging
import re
import time
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.plan.cost_model.collectives import Collectives
from vit_jax.plan.cost_model.estimate import Estimate, estimate
from vit_jax.plan.topologies import Topology
from vit_jax.train.memory import Bytes

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The compiler's figures for one program, on one device of a topology.

    If the compiler refused the program, `bytes.temporaries` is the memory that it says
    the program needs, less the arguments; figures that only a compiled program has are
    None.
    """

    bytes: Bytes
    fits: bool
    refused: str  # why the compiler refused the program, or ""
    compile_seconds: float  # of the compiler, without tracing
    flops: float | None  # the compiler's count: loops once, kernels not at all
    # None: this platform has no estimates, or the program cannot be read.
    estimate: Estimate | None

    @property
    def hyb_seconds(self) -> float | None:
        """The optimistic estimate (`cost_model.estimate`); None if there is none."""
        return self.estimate and self.estimate.hyb_seconds

    @property
    def cyc_seconds(self) -> float | None:
        """The conservative estimate (`cost_model.estimate`); None if there is none."""
        return self.estimate and self.estimate.cyc_seconds

    @property
    def traffic_bytes(self) -> float | None:
        """Bytes moved between the device and its main memory."""
        return self.estimate and self.estimate.traffic_bytes

    @property
    def collectives(self) -> dict[str, Collectives] | None:
        """Communication between devices, by kind."""
        return self.estimate and self.estimate.collectives


def measure(
    program: Any, arguments: tuple[Any, ...], topology: Topology
) -> Measurement:
    """Compiles a program; nothing is allocated or run.

    Args:
      program: a jitted function, such as `vit_jax.train.programs.build` returns for
        `topology.mesh(config)`.
      arguments: its arguments, or their shapes with dtype and sharding.
      topology: the devices of the arguments' shardings.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails for a reason other than memory.
    """
    lowered = program.lower(*arguments)
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=topology.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        taken = sharding.bytes_per_device(arguments)
        memory = Bytes(taken, 0, max(needed - taken, 0), 0)
        refused = str(error).partition("\n")[0].strip()
        return Measurement(memory, False, refused, seconds, None, None)
    seconds = time.perf_counter() - start
    memory = Bytes.of(compiled.memory_analysis())
    costs = compiled.cost_analysis() or {}
    return Measurement(
        bytes=memory,
        fits=memory.peak <= topology.usable_bytes,
        refused="",
        compile_seconds=seconds,
        flops=costs.get("flops"),
        estimate=_estimate(compiled, topology),
    )


def _estimate(compiled: Any, topology: Topology) -> Estimate | None:
    if not topology.has_estimates:
        return None
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        # A JAX that is older than the TPU compiler may not know all its instructions.
        reason = str(error).partition("\n")[0]
        logger.warning("no estimate: the compiled program cannot be read: %s", reason)
        return None
    return estimate(text, topology.chip)


# Messages of TPU compilers; the second is that of libtpu 0.0.52.
_NEEDED = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_needed(message: str) -> int | None:
    """Reads the bytes a program needs from an out-of-memory error; None for others."""
    if not re.search("RESOURCE_EXHAUSTED|out of memory", message, re.IGNORECASE):
        return None
    for pattern in _NEEDED:
        if found := re.search(pattern, message):
            return int(float(found[1]) * _UNITS[found[2]])
    return None
