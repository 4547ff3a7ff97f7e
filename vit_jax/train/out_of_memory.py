"""The message for a device that runs out of memory, with changes that need less."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from vit_jax import sharding
from vit_jax.config import as_flags
from vit_jax.errors import UserError
from vit_jax.train.memory import CHANGES, Bytes, changed, is_out_of_memory
from vit_jax.train.setup import Setup
from vit_jax.words import byte_size

logger = logging.getLogger(__name__)

_ENOUGH = 3  # number of fitting changes to find
# The names of `CHANGES` to try for a training step, the cheapest first.
_FOR_TRAINING = (
    "accumulate twice",
    "recompute all",
    "spread parameters",
    "halve the batch",
    "shorten the momentum",
    "use Adafactor",
)

# Flags, their cost, and the run with them.
Alternative = tuple[str, str, Setup]


class Phase(NamedTuple):
    """A compiled program of a run, and the changes that would make it smaller."""

    name: str  # beginning of a sentence
    lower: Callable[[Setup], jax.stages.Lowered]
    # Bytes on a device in addition to the program's own.
    beside: Callable[[Setup], int]
    alternatives: Callable[[Setup], Iterator[Alternative]]


def alternatives(setup: Setup) -> Iterator[Alternative]:
    """Yields changes that make a run's training step smaller, the cheapest first."""
    for name in _FOR_TRAINING:
        yield from _alternative(setup, CHANGES[name].values(setup), CHANGES[name].cost)


def _smaller_evaluations(setup: Setup) -> Iterator[Alternative]:
    rows = setup.eval_rows
    for _ in range(_ENOUGH):
        half = sharding.padded_batch_size(rows // 2, setup.mesh)
        if not 0 < half < rows:
            break
        rows = half
        yield from _alternative(setup, {"eval_batch_size": rows}, "the same result")
    spread = CHANGES["spread parameters"]
    yield from _alternative(setup, spread.values(setup), spread.cost)


def _alternative(
    setup: Setup, values: dict[str, Any], cost: str
) -> Iterator[Alternative]:
    """Yields the changed run, if the change is possible and changes anything."""
    if values.get("mesh.fsdp") == -1:
        # −1 means all devices of the machine, but the run must keep its own number.
        values = values | {"mesh.fsdp": setup.mesh.shape["data"]}
    if values:
        try:
            run = changed(setup, values)
        except UserError:
            return
        yield as_flags(values), cost, run


def _rest_of_the_state(setup: Setup) -> int:
    state = setup.abstract_state()._replace(params=())
    return sharding.bytes_per_device(state)


TRAINING = Phase("The step", Setup.lower, lambda _: 0, alternatives)
EVALUATION = Phase(
    "The evaluation", Setup.lower_eval, _rest_of_the_state, _smaller_evaluations
)


@contextlib.contextmanager
def out_of_memory_explained(setup: Setup, phase: Phase = TRAINING) -> Iterator[None]:
    """Turns an out-of-memory error into a message with changes that need less.

    The memory that each change would need is the compiler's figure for the changed
    program. Compiling it takes about as long as the start of the run, which is lost
    anyway. Changes are tried until three fit.

    Args:
      setup: the run.
      phase: the program that runs inside.

    Raises:
      UserError: a device ran out of memory; has the message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        device = setup.mesh.devices.flat[0]
        asked = re.search(r"(\d{4,}) bytes", str(error))
        size = f", asked for {byte_size(int(asked[1]))}" if asked else ""
        limit = _limit(device)
        there = f"; each device has {byte_size(limit)}" if limit else ""
        logger.warning("out of memory; compiling changes to find those that need less")
        raise UserError(
            f"out of memory on {device.device_kind}{size}{there}. "
            + _advice(setup, phase, limit)
        ) from error


def _advice(setup: Setup, phase: Phase, limit: int | None) -> str:
    """Writes what the program needs, and what it would need after each change."""

    def fits(needed: int | str) -> bool:
        return isinstance(needed, int) and (limit is None or needed <= limit)

    def said(needed: int | str, too_large: str, unit: str = "") -> str:
        if isinstance(needed, str):
            return needed + unit
        return byte_size(needed) + unit + too_large * (not fits(needed))

    before, lines, fitting = _needed(phase, setup), [], 0
    for flags, cost, run in phase.alternatives(setup):
        after = _needed(phase, run)
        lines.append(f"  {flags} ({cost}): {said(after, ', too much as well')}")
        fitting += fits(after)
        if fitting == _ENOUGH:
            break
    told = f"{phase.name} needs {said(before, ', which is too much', ' per device')}."
    if not lines:
        return f"{told} Use more devices, a smaller model or smaller images"
    return "\n".join([f"{told} Each of these changes would need less:", *lines])


def _needed(phase: Phase, setup: Setup) -> int | str:
    """Compiles a program and returns the bytes it needs; text if they are unknown."""
    try:
        memory = phase.lower(setup).compile().memory_analysis()
    except Exception as error:  # must not hide the original error
        if is_out_of_memory(error):
            return "too much memory"
        return f"an unknown amount of memory ({type(error).__name__})"
    if memory is None:
        return "an unknown amount of memory"
    return Bytes.of(memory).peak + phase.beside(setup)


def _limit(device: Any) -> int | None:
    with contextlib.suppress(Exception):  # not every backend reports it
        return (device.memory_stats() or {}).get("bytes_limit")
    return None
