"""Compiles a program for a topology and keeps what the compiler says of it."""

import dataclasses
import re
import time
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.plan.cost_model.collectives import Collectives
from vit_jax.plan.cost_model.estimate import Estimate, estimate
from vit_jax.plan.topologies import Topology
from vit_jax.train.memory import Bytes


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the compiler says of one program on one device of a topology.

    Where it refused the program, `bytes.temporaries` is what is left of the memory that
    it says it needs, and what else it knows only of a compiled program is None.
    """

    bytes: Bytes
    fits: bool
    refused: str  # why the compiler refused the program, or ""
    compile_seconds: float  # of the compiler, without tracing
    flops: float | None  # as the compiler counts them: loops once, kernels not at all
    estimate: Estimate | None  # None: there are none for this platform

    @property
    def hyb_seconds(self) -> float | None:
        """See `vit_jax.plan.cost_model.estimate`; None where there is no estimate."""
        return self.estimate and self.estimate.hyb_seconds

    @property
    def cyc_seconds(self) -> float | None:
        """The same, conservative."""
        return self.estimate and self.estimate.cyc_seconds

    @property
    def traffic_bytes(self) -> float | None:
        """Between the device and its main memory."""
        return self.estimate and self.estimate.traffic_bytes

    @property
    def collectives(self) -> dict[str, Collectives] | None:
        """What the devices send each other, by kind."""
        return self.estimate and self.estimate.collectives


def measure(
    program: Any, arguments: tuple[Any, ...], topology: Topology
) -> Measurement:
    """Compiles a program; nothing is allocated or run.

    Args:
      program: a jitted function, as `vit_jax.train.programs.build` gives it for
        `topology.mesh(config)`.
      arguments: what it is called with, or shapes with dtype and sharding.
      topology: where the arguments' shardings lie.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
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
    timed = None
    if topology.has_estimates:
        timed = estimate(compiled.as_text(), topology.chip)
    return Measurement(
        bytes=memory,
        fits=memory.peak <= topology.usable_bytes,
        refused="",
        compile_seconds=seconds,
        flops=costs.get("flops"),
        estimate=timed,
    )


# How compilers for TPUs say it; the second is libtpu 0.0.52.
_NEEDED = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_needed(message: str) -> int | None:
    """Bytes that a program needs, of the error that it does not fit; None = another."""
    if not re.search("RESOURCE_EXHAUSTED|out of memory", message, re.IGNORECASE):
        return None
    for pattern in _NEEDED:
        if found := re.search(pattern, message):
            return int(float(found[1]) * _UNITS[found[2]])
    return None
