"""Tests of the figures kept of compiled programs, and of refused ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.plan import measure, topology
from vit_jax.plan.compiled import memory_needed

# Messages of TPU compilers; the second is that of libtpu 0.0.52.
AT_THE_END = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory \
in memory space hbm. Used 23.58G of 15.75G hbm. Exceeded hbm capacity by 7.83G.

Total hbm usage >= 23.83G:
    reserved        258.00M"""
BEFORE = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on \
HBM, the total memory required for HLO temporaries (400.00G) exceeds available HBM \
(15.48G)."""


def program():
    mesh = sharding.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=rows)
    step = jax.jit(lambda x: (x + 1, jnp.sum(x @ x.T)), donate_argnums=0)
    return step, (x,)


def test_peak_is_arguments_outputs_and_temporaries_less_shared_memory():
    step, arguments = program()
    found = measure(step, arguments, topology())
    analysis = step.lower(*arguments).compile().memory_analysis()
    memory = found.bytes
    assert memory.arguments == analysis.argument_size_in_bytes == 8 * 128 * 4
    # All rows are gathered; the first output takes the argument's place.
    assert memory.temporaries == analysis.temp_size_in_bytes >= 64 * 128 * 4
    assert memory.aliased == memory.arguments
    assert memory.peak == memory.arguments + memory.temporaries + (
        memory.outputs - memory.aliased
    )
    assert found.fits and found.refused == "" and found.compile_seconds > 0
    assert found.flops > 8 * 64 * 128
    assert found.estimate is found.hyb_seconds is found.traffic_bytes is None


def test_fits_up_to_the_usable_memory():
    step, arguments = program()
    here = topology()
    peak = measure(step, arguments, here).bytes.peak
    for usable, fits in [(peak, True), (peak - 1, False)]:
        chip = here.chip._replace(usable_bytes=usable)
        small = dataclasses.replace(here, chip=chip)
        assert measure(step, arguments, small).fits == fits


class Refused:
    """A program that compiles to an error."""

    def __init__(self, message):
        self.message = message

    def lower(self, *_):
        return self

    def compile(self, **_):
        raise jax.errors.JaxRuntimeError(self.message)


def test_refused_program_needs_the_reported_memory():
    _, arguments = program()
    found = measure(Refused(AT_THE_END), arguments, topology())
    assert not found.fits
    assert found.bytes.peak == int(23.58 * 2**30)
    assert found.bytes.arguments == 8 * 128 * 4
    assert found.refused.endswith("Exceeded hbm capacity by 7.83G.")
    assert found.estimate is None and found.flops is None


def test_other_compiler_errors_are_raised():
    _, arguments = program()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        measure(Refused("INTERNAL: a bug"), arguments, topology())


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (AT_THE_END, int(23.58 * 2**30)),
        (BEFORE, 400 * 2**30),
        ("RESOURCE_EXHAUSTED: Used 512.5M of 15.75G hbm", int(512.5 * 2**20)),
        ("RESOURCE_EXHAUSTED: too many open files", None),
        ("INTERNAL: Used 1G of 2G hbm", None),
    ],
)
def test_memory_needed_is_read_from_the_message(message, needed):
    assert memory_needed(message) == needed


def test_a_program_that_cannot_be_read_has_no_estimate(monkeypatch, caplog):
    def unreadable(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update\n*** stack ***")

    step, arguments = program()
    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    here = topology()
    monkeypatch.setattr(type(here), "has_estimates", True)
    found = measure(step, arguments, here)
    assert found.fits
    assert found.estimate is None
    assert "cannot be read: INTERNAL: async-update" in caplog.text
    assert "stack" not in caplog.text
