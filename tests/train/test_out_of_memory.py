import re

import jax
import pytest

from vit_jax.errors import UserError
from vit_jax.train.memory import needed_bytes
from vit_jax.train.out_of_memory import alternatives, out_of_memory_explained
from vit_jax.train.setup import set_up

ERROR = "RESOURCE_EXHAUSTED: Out of memory allocating 74773162936 bytes."


def test_what_needs_less_is_told_with_its_size(tiny_config):
    values = {"model.width": 128, "model.mlp_dim": 256, "image_size": (32,)}
    values |= {"augment.train": "resize", "mesh.data": 2}
    setup = set_up(tiny_config(batch_size=64, **values))
    with pytest.raises(UserError) as error, out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError(ERROR)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("out of memory on cpu, asked for 69.64 GiB. The step needs")
    assert len(lines) == 4
    flags = [line.partition(" (")[0].strip() for line in lines]
    assert flags == [
        "--config.accum_steps=2",
        "--config.model.remat=full",
        "--config.batch_size=32",
        "--config.mesh.data=1 --config.mesh.fsdp=2",
    ]
    assert all(re.search(r"\): \d+\.\d\d GiB$", line) for line in lines)


def test_the_sizes_are_those_of_the_runs_with_the_flags(tiny_config):
    """Lowered, not compiled: the programs are the same."""
    setup = set_up(tiny_config(batch_size=64, **{"mesh.data": 2}))
    meant = [
        {"accum_steps": 2},
        {"model.remat": "full"},
        {"batch_size": 32},
        {"mesh.data": 1, "mesh.fsdp": 2},
    ]
    texts = []
    for values, (_, _, changed) in zip(meant, alternatives(setup), strict=True):
        config = tiny_config(**{"batch_size": 64, "mesh.data": 2} | values)
        expected = set_up(config).lower().as_text()
        assert changed.lower().as_text() == expected, values
        texts.append(expected)
    assert len({*texts, setup.lower().as_text()}) == 5


def test_accumulation_needs_less(tiny_config):
    values = {"model.width": 128, "model.mlp_dim": 512, "model.depth": 1}
    values |= {"augment.train": "resize", "image_size": (32,)}
    setup = set_up(tiny_config(batch_size=256, **values))
    _, _, changed = next(alternatives(setup))
    before, after = (
        needed_bytes(run.lower().compile().memory_analysis())
        for run in (setup, changed)
    )
    assert after < before


def test_other_errors_are_left_alone(tiny_config):
    setup = set_up(tiny_config())
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_explained(setup):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_what_does_not_compile_either_is_said(tiny_config, monkeypatch):
    setup = set_up(tiny_config(**{"mesh.data": 1}))

    def refuse(self, *_, **__):
        raise jax.errors.JaxRuntimeError(ERROR)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    said = pytest.raises(UserError, match="needs too much as well as it is")
    with said as error, out_of_memory_explained(setup):
        setup.lower().compile()
    assert str(error.value).count("too much as well") == 1 + 3
