"""How long a compiled TPU program takes by what the compiler says of it: two estimates.

  hyb  a product takes the compiler's cycles or its traffic with the main memory (HBM),
       whichever is longer; everything else its traffic. Optimistic.
  cyc  everything takes the compiler's cycles, one after the other. Conservative.

Kernels take the length of their schedules in both. Loops count as often as they run.
Sums and gathers between devices take no time, and nothing stalls: so the estimates rank
programs on one chip; they are no throughput, and say nothing of one chip against
another. Where they disagree on the sign of a difference, or it is below about 5 %,
there is no difference to be seen.
"""

import dataclasses
from typing import NamedTuple

from vit_jax.plan.chips import Chip
from vit_jax.plan.cost_model import kernels
from vit_jax.plan.cost_model.collectives import COLLECTIVES, Collectives, collectives
from vit_jax.plan.cost_model.hlo import (
    Computation,
    Operation,
    Program,
    executed,
    parse,
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one run of the program on one device."""

    hyb_seconds: float
    cyc_seconds: float
    traffic_bytes: float  # read from the main memory and written to it
    collectives: dict[str, Collectives]  # by kind
    unknown_kernels: int  # calls of kernels that are only counted by their traffic


class _Cost(NamedTuple):
    """Of one operation."""

    traffic: float = 0.0  # bytes
    waited: bool = True  # whether what follows waits for this traffic
    cycles: int = 0
    product: bool = False  # or a fusion with one
    kernel: float | None = 0.0  # seconds; None = it is a kernel, and not known


_PRODUCTS = {"convolution", "dot"}


def estimate(text: str, chip: Chip) -> Estimate:
    """Reads the compiled program's text for a chip with a clock."""
    program = parse(text)
    hyb = cyc = traffic = 0.0
    unknown = 0
    for operation, computation, times in executed(program):
        cost = _cost(operation, computation, program, chip)
        kernel = cost.kernel or 0.0
        unknown += times * (cost.kernel is None)
        moving = cost.traffic / chip.bandwidth if cost.waited else 0.0
        computing = cost.cycles / chip.clock
        hyb += times * max(moving, computing if cost.product else 0.0, kernel)
        cyc += times * (computing + kernel)
        traffic += times * cost.traffic
    return Estimate(hyb, cyc, traffic, collectives(program), round(unknown))


def _cost(
    operation: Operation, computation: Computation, program: Program, chip: Chip
) -> _Cost:
    opcode = operation.opcode
    if opcode in ("copy-start", "slice-start"):
        # The compiler's own moves between memories, of the smaller of both arrays.
        one, other = operation.leaves[:2]
        moved = min(one.bytes, other.bytes)
        return _Cost(moved * (one.in_hbm + other.in_hbm), waited=False)
    if opcode.startswith((*COLLECTIVES, "async-start")):
        return _Cost()
    if opcode == "custom-call":
        if "tpu_custom_call" not in operation.attributes:
            return _Cost()  # a hint to the compiler
        traffic = _all_traffic(operation, computation)
        return _Cost(traffic, kernel=kernels.seconds(operation, chip))
    if opcode == "fusion":
        fused = operation.called("calls")
        return _Cost(
            _fusion_traffic(operation, computation, program.computations, fused),
            cycles=operation.cycles,
            product=_has_product(fused, program.computations),
        )
    if opcode in ("dynamic-slice", "slice"):
        traffic = 2 * operation.hbm_bytes
    elif opcode == "dynamic-update-slice":
        traffic = 2 * computation.operations[operation.operands[1]].hbm_bytes
    else:
        traffic = _all_traffic(operation, computation)
    return _Cost(traffic, cycles=operation.cycles, product=opcode in _PRODUCTS)


def _all_traffic(operation: Operation, computation: Computation) -> float:
    """What it gives is written once, what it takes is read once."""
    given = [computation.operations[name] for name in operation.operands]
    return operation.hbm_bytes + sum(operand.hbm_bytes for operand in given)


def _fusion_traffic(
    operation: Operation,
    computation: Computation,
    computations: dict[str, Computation],
    fused: str,
) -> float:
    """The same, but of slices that it takes or replaces only these."""
    read = kept = 0.0
    for position, name in enumerate(operation.operands):
        whole = computation.operations[name].hbm_bytes
        if whole:
            parameter = computations[fused].parameters.get(position, "")
            part, untouched = _touched(parameter, fused, computations, whole)
            read += part
            kept += untouched
    return read + max(operation.hbm_bytes - kept, 0.0)


def _touched(
    name: str, fused: str, computations: dict[str, Computation], whole: float
) -> tuple[float, float]:
    """Bytes that a fused computation reads of a value, and what of it stays."""
    computation = computations[fused]
    value = computation.operations.get(name)
    if value is None or value.is_root:
        return whole, 0.0
    read = kept = 0.0
    for user, position in computation.users.get(name, ()):
        part, untouched = whole, 0.0
        if user.opcode in ("dynamic-slice", "slice"):
            part = user.bytes if position == 0 else 0.0
        elif user.opcode == "dynamic-update-slice" and position == 0:
            update = computation.operations[user.operands[1]].bytes
            part, untouched = 0.0, max(whole - update, 0.0)
        elif user.opcode == "dynamic-update-slice" and position > 1:
            part = 0.0  # where the slice begins
        elif user.opcode in ("bitcast", "reshape"):
            part, untouched = _touched(user.name, fused, computations, whole)
        elif user.opcode == "fusion":
            inner = user.called("calls")
            parameter = computations[inner].parameters[position]
            part, untouched = _touched(parameter, inner, computations, whole)
        read += part
        kept = max(kept, untouched)
    return min(read, whole), kept


def _has_product(name: str, computations: dict[str, Computation]) -> bool:
    return any(
        operation.opcode in _PRODUCTS
        or (
            operation.opcode == "fusion"
            and _has_product(operation.called("calls"), computations)
        )
        for operation in computations[name].operations.values()
    )
