"""What to say when a device has not enough memory: what needs less, and how much."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.train.memory import is_out_of_memory, needed_bytes
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def out_of_memory_explained(setup: Setup) -> Iterator[None]:
    """A device without enough memory ends in a message that says what needs less.

    What each change would need is what the compiler says of the changed step: that
    takes about as long as the start of the run, which is lost anyway.
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
        lines = [
            f"  {flags} ({remark}): {_told(changed)}"
            for flags, remark, changed in alternatives(setup)
        ]
        raise UserError(
            f"out of memory on {device.device_kind}{size}{there}. The step needs "
            f"{_told(setup)} as it is. What needs less, a device:\n" + "\n".join(lines)
        ) from error


def alternatives(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    """Flags, what they cost, and the run with them."""
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
    half = config.batch_size // 2
    if half % (config.accum_steps * parts) == 0 and half:
        changed = _changed(setup, {"batch_size": half})
        yield f"--config.batch_size={half}", "another result", changed
    width = setup.architecture.width
    if mesh.shape.get("data", 1) == mesh.size > 1 and width % mesh.size == 0:
        mesh = sharding.make_mesh(data=1, fsdp=mesh.size)
        changed = _changed(setup, {"mesh.data": 1, "mesh.fsdp": mesh.size})
        changed = dataclasses.replace(changed, mesh=mesh)
        flags = f"--config.mesh.data=1 --config.mesh.fsdp={mesh.size}"
        yield flags, "parameters travel every step", changed


def _changed(setup: Setup, values: dict[str, Any]) -> Setup:
    config = setup.config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return dataclasses.replace(setup, config=config)


def _told(setup: Setup) -> str:
    try:
        memory = setup.lower().compile().memory_analysis()
    except Exception as error:  # there is a worse problem to speak of
        if is_out_of_memory(error):
            return "too much as well"
        return f"not known ({type(error).__name__})"
    return "not known" if memory is None else _gib(needed_bytes(memory))


def _limit(device: Any) -> int | None:
    with contextlib.suppress(Exception):  # not every backend tells
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
