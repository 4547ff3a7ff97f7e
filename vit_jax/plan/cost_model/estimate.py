"""Two estimates of a compiled TPU program's time.

  hyb  A product takes the time of the compiler's cycles or of its traffic with the main
       memory (HBM), whichever is longer; every other operation that of its traffic.
       Optimistic.
  cyc  Every operation takes the compiler's cycles, one after the other. Conservative.

In both, kernels take the length of their schedules, and loops count as often as they
run. Communication between devices takes no time, and nothing stalls. The estimates
therefore rank programs on one chip; they do not predict throughput or compare chips. If
they disagree on the sign of a difference, or it is below about 5 %, it means nothing.
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
    """Estimates for one run of the program on one device."""

    hyb_seconds: float
    cyc_seconds: float
    traffic_bytes: float  # read from the main memory and written to it
    collectives: dict[str, Collectives]  # by kind
    unknown_kernels: int  # calls of kernels that count only by their traffic


class _Cost(NamedTuple):
    """The cost of one operation."""

    traffic: float = 0.0  # bytes
    waited: bool = True  # whether later operations wait for this traffic
    cycles: int = 0
    product: bool = False  # whether it is a product, or a fusion that contains one
    kernel: float | None = 0.0  # seconds; None = a kernel of unknown time


_PRODUCTS = {"convolution", "dot"}


def estimate(text: str, chip: Chip) -> Estimate:
    """Estimates a program from its compiled text, for a chip whose clock is known."""
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
        # The compiler's own copies between memories move the smaller of both arrays.
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
    """Returns the bytes of writing all results once and reading all operands once."""
    given = [computation.operations[name] for name in operation.operands]
    return operation.hbm_bytes + sum(operand.hbm_bytes for operand in given)


def _fusion_traffic(
    operation: Operation,
    computation: Computation,
    computations: dict[str, Computation],
    fused: str,
) -> float:
    """Returns a fusion's traffic, counting only the slices that it reads or updates."""
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
    """Returns the bytes of a value that a fusion reads, and those that it keeps."""
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
