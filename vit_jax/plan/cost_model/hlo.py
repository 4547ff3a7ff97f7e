"""A reader of a compiled program's text (optimised HLO), as far as its cost needs it.

The text has one line per operation, grouped into computations; fusions, loops and calls
name the computation that they run. Layouts give an array's memory and padding:
`{1,0:T(8,128)S(1)}` is row-major, in tiles of 8 × 128, in vector memory.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEM_BYTES = {
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
# Memory spaces other than main memory: vector memory, flags and scalars, the host's.
# A v4's common memory, S(3), counts as main memory, because its speed is not published.
_ELSEWHERE = re.compile(r"S\([1256]\)")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d[a-z]*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERATION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*->.*\{\s*$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
# Operations that only name existing values, and the ends of asynchronous operations,
# which are counted at their start.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id"),
    *("copy-done", "slice-done", "async-update", "async-done"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done"),
}


class Leaf(NamedTuple):
    """An array, possibly one of a tuple."""

    shape: tuple[int, ...]
    bytes: float  # including the padding of its tiles
    in_hbm: bool  # in main memory, rather than in other memory


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # as written: operands, or the value of a constant
    attributes: str
    is_root: bool

    @functools.cached_property
    def leaves(self) -> list[Leaf]:
        """The arrays of its result."""
        return [_leaf(match) for match in _ARRAY.finditer(self.type)]

    @property
    def bytes(self) -> float:
        """Size of its result, in any memory."""
        return sum(leaf.bytes for leaf in self.leaves)

    @property
    def hbm_bytes(self) -> float:
        """Size of the part of its result that is in the device's main memory."""
        return sum(leaf.bytes for leaf in self.leaves if leaf.in_hbm)

    def called(self, attribute: str) -> str:
        """Returns the computation named by `attribute` ("calls", "body", …), or ""."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        pattern = r"branch_computations=\{[^}]*\}|(?:true|false)_computation=%[\w.\-]+"
        return _NAME.findall(" ".join(re.findall(pattern, self.attributes)))

    @property
    def cycles(self) -> int:
        """The compiler's own estimate; 0 if it has none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else 0


@dataclasses.dataclass
class Computation:
    """A function: its operations by name, in order."""

    operations: dict[str, Operation]

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters, by number."""
        return {
            int(operation.arguments): operation.name
            for operation in self.operations.values()
            if operation.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Operation, int]]]:
        """Name of an operation → (user, position among the user's operands)."""
        found: dict[str, list[tuple[Operation, int]]] = {}
        for operation in self.operations.values():
            for position, name in enumerate(operation.operands):
                found.setdefault(name, []).append((operation, position))
        return found


class Program(NamedTuple):
    """A module: its computations, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Reads the text of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    # The metadata of a kernel span several lines.
    for line in re.sub(r'\n(?="|\}.)', " ", text).splitlines():
        if not line.startswith(" "):
            if match := _COMPUTATION.match(line):
                current = computations[match[2]] = Computation({})
                entry = match[2] if match[1] else entry
        elif current is not None and (match := _OPERATION.match(line)):
            operation = _operation(line, match)
            current.operations[operation.name] = operation
    if not entry:
        raise ValueError("the text is not an HLO module: it has no ENTRY computation")
    return Program(computations, entry)


def executed(
    program: Program, name: str = "", times: float = 1
) -> Iterator[tuple[Operation, Computation, float]]:
    """Yields each operation that runs, its computation, and how often it runs.

    All branches of a conditional are equally likely. Operations that only name existing
    values are left out.

    Args:
      program: the module.
      name: the computation to run; by default the entry computation.
      times: how often it runs.
    """
    computation = program.computations[name or program.entry]
    for operation in computation.operations.values():
        if operation.opcode == "while":
            count = times * trip_count(operation, program)
            yield from executed(program, operation.called("body"), count)
        elif operation.opcode == "call":
            yield from executed(program, operation.called("to_apply"), times)
        elif operation.opcode == "conditional":
            for branch in operation.branches:
                count = times / len(operation.branches)
                yield from executed(program, branch, count)
        elif operation.opcode not in _FREE:
            yield operation, computation, times


def trip_count(loop: Operation, program: Program) -> int:
    """Returns how often a `while` runs its body.

    The number is an attribute of the loop; on TPUs, it is the constant that the
    condition compares the counter with, divided by the counter's increment.
    """
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = program.computations[loop.called("condition")]
    constants = [
        int(operation.arguments)
        for operation in condition.operations.values()
        if operation.opcode == "constant" and operation.arguments.isdigit()
    ]
    return -(-max(constants, default=1) // _added(loop, condition, program))


def _added(loop: Operation, condition: Computation, program: Program) -> int:
    """Returns the counter's increment per round, which is two in unrolled loops."""
    body = program.computations[loop.called("body")].operations
    root = next((o for o in body.values() if o.is_root), None)
    for read in condition.operations.values():
        index = re.search(r"\bindex=(\d+)", read.attributes)
        if read.opcode == "get-tuple-element" and root and root.opcode == "tuple":
            assert index, read
            counter = body[root.operands[int(index[1])]]
            terms = [body[name] for name in counter.operands]
            added = [int(o.arguments) for o in terms if o.opcode == "constant"]
            return max(added, default=1) if counter.opcode == "add" else 1
    return 1


def _operation(line: str, match: re.Match[str]) -> Operation:
    start = match.end()
    # A tuple's type is in parentheses; other types contain no space.
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    assert opcode, line
    close = _closing(line, opcode.end() - 1)
    arguments = line[opcode.end() : close - 1]
    return Operation(
        name=match[2],
        type=line[start:end],
        opcode=opcode[1],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=line[close:],
        is_root=bool(match[1]),
    )


def _closing(line: str, start: int) -> int:
    """Returns the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"a parenthesis is never closed: {line[:200]}")


def _leaf(match: re.Match[str]) -> Leaf:
    kind, dimensions, layout = match.groups(default="")
    shape = tuple(int(size) for size in dimensions.split(",") if size)
    order, _, places = layout.partition(":")
    minor_to_major = [int(axis) for axis in order.split(",") if axis.strip().isdigit()]
    physical = [shape[axis] for axis in reversed(minor_to_major)] or list(shape)
    tile = re.search(r"T\((\d+(?:,\d+)*)\)", places)
    tile = [int(size) for size in tile[1].split(",")] if tile else []
    if len(tile) <= len(physical):
        for axis, size in enumerate(reversed(tile), 1):
            physical[-axis] = -(-physical[-axis] // size) * size
    in_hbm = not _ELSEWHERE.search(places)
    return Leaf(shape, _ITEM_BYTES.get(kind, 0) * math.prod(physical), in_hbm)
