"""Communication between devices during one run of a compiled program."""

from collections.abc import Iterator
from typing import NamedTuple

from vit_jax.plan.cost_model.hlo import (
    Computation,
    Operation,
    Program,
    executed,
)

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter"),
    *("all-to-all", "collective-permute"),
)


class Collectives(NamedTuple):
    """The collectives of one kind; those that the compiler combined count as one."""

    count: int
    # Sizes of the whole arrays, padded as in memory: as gathered, as summed, or as
    # summed before they are scattered. Each of n devices sends and receives (n - 1) / n
    # of them, or twice that in an all-reduce.
    bytes: int


def collectives(program: Program) -> dict[str, Collectives]:
    """Counts collectives by kind, the most bytes first, and every round of a loop."""
    counts: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for operation, computation, times in executed(program):
        for kind, size in _within(operation, computation, program):
            counts[kind] = counts.get(kind, 0) + times
            sizes[kind] = sizes.get(kind, 0) + times * size
    return {
        kind: Collectives(round(counts[kind]), round(sizes[kind]))
        for kind in sorted(sizes, key=sizes.__getitem__, reverse=True)
    }


def _within(
    operation: Operation, computation: Computation, program: Program
) -> Iterator[tuple[str, float]]:
    """Yields kind and size of each collective that an operation is, fuses or starts."""
    if (kind := operation.opcode.removesuffix("-start")) in COLLECTIVES:
        yield kind, _size(operation, computation)
    if operation.opcode not in ("fusion", "async-start"):
        return
    name = operation.called("calls")
    called = program.computations[name]
    # TPU compilers fuse parts of a gather with products that overlap with it: each part
    # names the gather, and one of them starts it.
    starts = any("AsyncCollectiveStart" in o.attributes for o in _operations(called))
    for inner in _operations(called):
        if inner.opcode not in COLLECTIVES:
            continue
        if starts or "chain_id=" not in inner.attributes:
            # The fusion sums, and each device keeps a part of the sum.
            scatters = name.startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scatters else inner.opcode
            yield kind, _size(inner, called)


def _operations(computation: Computation) -> Iterator[Operation]:
    yield from computation.operations.values()


def _size(operation: Operation, computation: Computation) -> float:
    taken = sum(computation.operations[name].bytes for name in operation.operands)
    # The results of a start operation include its operands.
    given = operation.bytes - taken * operation.opcode.endswith("-start")
    return max(taken, given)
