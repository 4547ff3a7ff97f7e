"""What to say when a device has not enough memory: what needs less, and how much."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import padded_batch_size
from vit_jax.train.memory import is_out_of_memory, needed_bytes
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)


_ENOUGH = 3  # changes that fit


class Phase(NamedTuple):
    """What a run has a compiled program for, and what would make that smaller."""

    name: str  # as a sentence begins
    lower: Callable[[Setup], jax.stages.Lowered]
    # Bytes in a device's memory besides its arguments.
    beside: Callable[[Setup], int]
    # Flags, what they cost, and the run with them.
    alternatives: Callable[[Setup], Iterator[tuple[str, str, Setup]]]


def alternatives(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    """What makes the training step smaller: first what costs least."""
    config, mesh = setup.config, setup.mesh
    parts = sharding.batch_parts(mesh)
    if config.batch_size % (2 * config.accum_steps * parts) == 0:
        accum = 2 * config.accum_steps
        changed = _changed(setup, {"accum_steps": accum})
        yield f"--config.accum_steps={accum}", "the same result", changed
    if config.model.remat != "full":
        changed = _changed(setup, {"model.remat": "full"})
        model = setup.model.clone(remat="full")
        changed = dataclasses.replace(changed, model=model)
        yield "--config.model.remat=full", "a third more time", changed
    yield from _spread(setup)
    half = config.batch_size // 2
    if half % (config.accum_steps * parts) == 0 and half:
        changed = _changed(setup, {"batch_size": half})
        yield f"--config.batch_size={half}", "another result", changed
    if config.momentum_dtype != "bfloat16":
        yield _with_optimizer(setup, {"momentum_dtype": "bfloat16"})
    if config.optimizer == "adamw":
        adafactor = {"optimizer": "adafactor", "momentum_dtype": "bfloat16"}
        yield _with_optimizer(setup, adafactor)


def _smaller_evaluations(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    """What makes an evaluation smaller."""
    rows = setup.eval_rows
    for _ in range(_ENOUGH):
        half = padded_batch_size(rows // 2, setup.mesh)
        if not 0 < half < rows:
            break
        rows = half
        changed = _changed(setup, {"eval_batch_size": rows})
        yield f"--config.eval_batch_size={rows}", "the same result", changed
    yield from _spread(setup)


def _spread(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    mesh, width = setup.mesh, setup.architecture.width
    if mesh.shape.get("data", 1) == mesh.size > 1 and width % mesh.size == 0:
        mesh = sharding.make_mesh(data=1, fsdp=mesh.size)
        changed = _changed(setup, {"mesh.data": 1, "mesh.fsdp": mesh.size})
        changed = dataclasses.replace(changed, mesh=mesh)
        flags = f"--config.mesh.data=1 --config.mesh.fsdp={mesh.size}"
        yield flags, "parameters travel every step", changed


def _rest_of_the_state(setup: Setup) -> int:
    state = setup.abstract_state()._replace(params=())
    return sharding.bytes_per_device(state)


TRAINING = Phase("The step", Setup.lower, lambda _: 0, alternatives)
EVALUATION = Phase(
    "An evaluation", Setup.lower_eval, _rest_of_the_state, _smaller_evaluations
)


@contextlib.contextmanager
def out_of_memory_explained(setup: Setup, phase: Phase = TRAINING) -> Iterator[None]:
    """A device without enough memory ends in a message that says what needs less.

    What each change would need is what the compiler says of the changed program: that
    takes about as long as the start of the run, which is lost anyway. Changes are tried
    until three are found that fit.

    Args:
      setup: the run.
      phase: what runs inside.

    Raises:
      UserError: the message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        device = setup.mesh.devices.flat[0]
        asked = re.search(r"(\d{4,}) bytes", str(error))
        size = f", asked for {_gib(int(asked[1]))}" if asked else ""
        limit = _limit(device)
        there = f"; a device has {_gib(limit)}" if limit else ""
        logger.warning("out of memory; looking for what needs less, by compiling it")
        told, _ = _needed(phase, setup, limit)
        lines, fitting = [], 0
        for flags, remark, changed in phase.alternatives(setup):
            needs, fits = _needed(phase, changed, limit)
            lines.append(f"  {flags} ({remark}): {needs}")
            fitting += fits
            if fitting == _ENOUGH:
                break
        raise UserError(
            f"out of memory on {device.device_kind}{size}{there}. {phase.name} needs "
            f"{told} as it is. What needs less, a device:\n" + "\n".join(lines)
        ) from error


def _with_optimizer(setup: Setup, values: dict[str, Any]) -> tuple[str, str, Setup]:
    changed = _changed(setup, values)
    flags = " ".join(f"--config.{key}={value}" for key, value in values.items())
    return flags, "another result", changed


def _changed(setup: Setup, values: dict[str, Any]) -> Setup:
    config = setup.config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return dataclasses.replace(setup, config=config)


def _needed(phase: Phase, setup: Setup, limit: int | None) -> tuple[str, bool]:
    """In words; and whether a device has that much, as far as is known."""
    try:
        memory = phase.lower(setup).compile().memory_analysis()
    except Exception as error:  # there is a worse problem to speak of
        if is_out_of_memory(error):
            return "too much as well", False
        return f"not known ({type(error).__name__})", False
    if memory is None:
        return "not known", False
    needed = needed_bytes(memory) + phase.beside(setup)
    too_much = limit is not None and needed > limit
    return _gib(needed) + ", too much as well" * too_much, not too_much


def _limit(device: Any) -> int | None:
    with contextlib.suppress(Exception):  # not every backend tells
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
