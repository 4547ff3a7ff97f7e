"""The memory that a compiled step needs, and changes to a run that reduce it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.config import checks
from vit_jax.optim.options import keys_read
from vit_jax.optim.rule import READ_BY_SOME
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.train.choices import CHOICES
from vit_jax.train.setup import Setup


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The memory of one device while a compiled program runs, in bytes."""

    arguments: int  # with padding
    outputs: int
    temporaries: int
    aliased: int  # outputs that reuse the memory of arguments

    @classmethod
    def of(cls, memory: Any) -> "Bytes":
        """Takes the sizes from a compiled program's `memory_analysis()`."""
        return cls(
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.alias_size_in_bytes,
        )

    @property
    def peak(self) -> int:
        """The maximum that is in use at once."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, its compiler or this machine ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    said = re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE)
    return isinstance(error, jax.errors.JaxRuntimeError) and said is not None


class Change(NamedTuple):
    """A change to a run that reduces the memory of its training step.

    Attributes:
      cost: the price, as text for a message.
      values: a run → the keys to set; empty if they are set already.
    """

    cost: str
    values: Callable[[Setup], dict[str, Any]]


def _accumulated(factor: int) -> Callable[[Setup], dict[str, Any]]:
    return lambda setup: {"accum_steps": factor * setup.config.accum_steps}


# From the most device memory to the least, as measured for the smaller models in
# docs/memory.md.
_REMAT = ("offload", "none", "attention", "dots", "full")


def _recomputed(policy: str) -> Callable[[Setup], dict[str, Any]]:
    def values(setup: Setup) -> dict[str, Any]:
        less = _REMAT[_REMAT.index(setup.config.model.remat) + 1 :]
        return {"model.remat": policy} if policy in less else {}

    return values


def _spread(setup: Setup) -> dict[str, Any]:
    replicas, parts = (setup.mesh.shape.get(axis, 1) for axis in ("data", "fsdp"))
    return {"mesh.data": 1, "mesh.fsdp": -1} if parts == 1 < replicas else {}


def _half_batch(setup: Setup) -> dict[str, Any]:
    return {"batch_size": setup.config.batch_size // 2}


def _short_momentum(setup: Setup) -> dict[str, Any]:
    short = setup.config.momentum_dtype == "bfloat16"
    used = {setup.config.optimizer, *setup.groups.values("rule")} - {""}
    if short or "momentum_dtype" not in keys_read(OPTIMIZERS, used):
        return {}
    return {"momentum_dtype": "bfloat16"}


def _adafactor(setup: Setup) -> dict[str, Any]:
    if setup.config.optimizer != "adamw":
        return {}
    found = {"optimizer": "adafactor", "momentum_dtype": "bfloat16"}
    read = keys_read(OPTIMIZERS, {"adafactor", *setup.groups.values("rule")} - {""})
    default = config_lib.default_config()
    # A run whose optimisers do not read a key refuses other values of it.
    return found | {
        key: default[key]
        for key in READ_BY_SOME
        if key not in read and setup.config[key] != default[key]
    }


# The checks of the config decide whether a change is possible for a run. docs/memory.md
# has the measured benefit and cost of each.
CHANGES = {
    "accumulate twice": Change("the same result", _accumulated(2)),
    "accumulate four times": Change("the same result", _accumulated(4)),
    "recompute all but products": Change("a tenth more time", _recomputed("dots")),
    "recompute all": Change("a third more time", _recomputed("full")),
    "spread parameters": Change("parameters travel every step", _spread),
    "halve the batch": Change("another result", _half_batch),
    "shorten the momentum": Change("another result", _short_momentum),
    "use Adafactor": Change("another result", _adafactor),
}


def changed(setup: Setup, values: Mapping[str, Any]) -> Setup:
    """Makes a copy of a run with other values of the keys that `CHANGES` sets.

    Raises:
      UserError: the config cannot have these values.
    """
    config, mesh = config_lib.changed(setup.config, values), setup.mesh
    if any(key.startswith("mesh.") for key in values):
        mesh = sharding.make_mesh(**config.mesh)
    parts = sharding.batch_parts(mesh)
    checks.check(
        config_lib.problems(config, CHOICES, num_devices=parts)
        + sharding.misfits(mesh, setup.architecture)
    )
    return dataclasses.replace(
        setup,
        config=config,
        mesh=mesh,
        model=setup.model.clone(remat=config.model.remat),
    )
