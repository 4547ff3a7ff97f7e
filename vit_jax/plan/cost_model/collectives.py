"""What devices send each other while a compiled program runs once."""

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
    """Those of one kind; several that the compiler has combined are one."""

    count: int
    # Of the whole arrays, padded as in memory: as gathered, summed, or summed before
    # they are scattered. Of n devices each sends and receives (n - 1) / n of it, in an
    # all-reduce twice that.
    bytes: int


def collectives(program: Program) -> dict[str, Collectives]:
    """By kind, the most bytes first; what is in a loop counts as often as it runs."""
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
    """The kind and the size of each that an operation is, fuses, or starts."""
    if (kind := operation.opcode.removesuffix("-start")) in COLLECTIVES:
        yield kind, _size(operation, computation)
    if operation.opcode not in ("fusion", "async-start"):
        return
    name = operation.called("calls")
    called = program.computations[name]
    # Compilers for TPUs fuse parts of a gather with products that run meanwhile: each
    # part names it, and one of them starts it.
    starts = any("AsyncCollectiveStart" in o.attributes for o in _operations(called))
    for inner in _operations(called):
        if inner.opcode not in COLLECTIVES:
            continue
        if starts or "chain_id=" not in inner.attributes:
            # A sum of which each device keeps a part.
            scatters = name.startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scatters else inner.opcode
            yield kind, _size(inner, called)


def _operations(computation: Computation) -> Iterator[Operation]:
    yield from computation.operations.values()


def _size(operation: Operation, computation: Computation) -> float:
    taken = sum(computation.operations[name].bytes for name in operation.operands)
    # What starts one gives its operands too.
    given = operation.bytes - taken * operation.opcode.endswith("-start")
    return max(taken, given)
