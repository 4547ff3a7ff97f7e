"""Memory that a program needs, and changes of a run that need less."""

import types

import jax
import pytest

from vit_jax.errors import UserError
from vit_jax.models.encoder import REMAT
from vit_jax.train import memory
from vit_jax.train.memory import CHANGES, Bytes, changed
from vit_jax.train.setup import set_up


def test_the_peak_counts_shared_memory_once():
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=60,
        temp_size_in_bytes=30,
        alias_size_in_bytes=50,
    )
    assert Bytes.of(analysis) == Bytes(100, 60, 30, 50)
    assert Bytes.of(analysis).peak == 140


def test_every_change_names_the_keys_it_sets(tiny_config):
    setup = set_up(tiny_config(batch_size=64, accum_steps=2, **{"mesh.data": 4}))
    assert {name: change.values(setup) for name, change in CHANGES.items()} == {
        "accumulate twice": {"accum_steps": 4},
        "accumulate four times": {"accum_steps": 8},
        "recompute all but products": {"model.remat": "dots"},
        "recompute all": {"model.remat": "full"},
        "spread parameters": {"mesh.data": 1, "mesh.fsdp": -1},
        "halve the batch": {"batch_size": 32},
        "shorten the momentum": {"momentum_dtype": "bfloat16"},
        "use Adafactor": {"optimizer": "adafactor", "momentum_dtype": "bfloat16"},
    }


def test_changes_set_no_key_that_the_optimizer_does_not_read(tiny_config):
    setup = set_up(tiny_config(b1=0.8, b2=0.95))
    assert CHANGES["use Adafactor"].values(setup) == {
        "optimizer": "adafactor",
        "momentum_dtype": "bfloat16",
        "b1": 0.9,
    }
    setup = set_up(tiny_config(optimizer="schedule_free_adamw"))
    assert not CHANGES["shorten the momentum"].values(setup)


def test_settings_already_in_use_are_not_suggested(tiny_config):
    values = {"momentum_dtype": "bfloat16", "optimizer": "sgd", "model.remat": "full"}
    meshes = {"mesh.data": 2, "mesh.fsdp": 2}, {"mesh.data": 1, "mesh.tensor": 2}
    for mesh in meshes:
        setup = set_up(tiny_config(**values, **mesh))
        told = {name for name, change in CHANGES.items() if change.values(setup)}
        assert told == {"accumulate twice", "accumulate four times", "halve the batch"}


@pytest.mark.parametrize(
    ("remat", "less"),
    [
        ("offload", ["dots", "full"]),
        ("none", ["dots", "full"]),
        ("attention", ["dots", "full"]),
        ("dots", ["full"]),
        ("full", []),
    ],
)
def test_recomputation_is_increased_step_by_step(remat, less, tiny_config):
    setup = set_up(tiny_config(**{"model.remat": remat}))
    names = "recompute all but products", "recompute all"
    found = [CHANGES[name].values(setup) for name in names]
    assert [each["model.remat"] for each in found if each] == less


def test_every_form_of_recomputation_is_ranked():
    assert sorted(memory._REMAT) == sorted(REMAT)


def test_a_changed_run_is_the_run_of_the_changed_config(tiny_config):
    values = {"batch_size": 32, "mesh.data": 4}
    setup = set_up(tiny_config(**values))
    new = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2, "model.remat": "full"}
    new |= {"optimizer": "adafactor", "momentum_dtype": "bfloat16"}
    found, expected = changed(setup, new), set_up(tiny_config(**values | new))
    assert found.config.to_json() == expected.config.to_json()
    assert found.mesh == expected.mesh
    assert found.model == expected.model
    assert jax.tree.map(str, found.abstract_state()) == jax.tree.map(
        str, expected.abstract_state()
    )
    assert setup.config.optimizer == "adamw"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"accum_steps": 4}, "batch_size=16 must be divisible by 8 devices × accum"),
        ({"batch_size": 6}, "batch_size=6 must be divisible by 8 devices"),
        ({"batch_size": 8}, "augment.repeats=16 must divide batch_size=8"),
        ({"mesh.data": 1, "mesh.fsdp": 3}, "mesh.fsdp=3 must divide the model's width"),
    ],
)
def test_impossible_changes_are_rejected(values, text, tiny_config):
    setup = set_up(tiny_config(batch_size=16, **{"augment.repeats": 16}))
    with pytest.raises(UserError, match=text):
        changed(setup, values)
