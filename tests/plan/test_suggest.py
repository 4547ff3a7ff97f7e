"""Tests of changes that save memory, and of the largest batch, with formula memory."""

import dataclasses
import functools

import pytest

from vit_jax.config import as_flags
from vit_jax.plan import make_plan, plans, scaling, suggest, topology
from vit_jax.plan.compiled import Bytes, Measurement
from vit_jax.plan.cost_model.estimate import Estimate
from vit_jax.train.setup import set_up

FIXED, EACH = 10_000, 100
SAVED = {"none": 1.0, "dots": 0.75, "full": 0.5}


def needed(config, mesh):
    """Computes bytes per device: state, and an amount per image of a microbatch."""
    fixed = FIXED - 2_000 * (config.momentum_dtype == "bfloat16")
    rows = config.batch_size / (mesh.shape["data"] * mesh.shape["fsdp"])
    images = rows / config.accum_steps * SAVED[config.model.remat]
    return int(fixed / mesh.shape["fsdp"] + EACH * images)


@pytest.fixture
def plan_of(tiny_config, monkeypatch):
    """A function from usable bytes and config values to a plan and its `prepare`."""
    compiled = []

    def measure(setup, topology):
        peak = needed(setup.config, setup.mesh)
        compiled.append(setup.config.batch_size)
        seconds = 1 + (setup.config.model.remat != "none")
        fits = peak <= topology.usable_bytes
        times = Estimate(seconds, 2 * seconds, 0, {}, 0) if fits else None
        refused = "" if fits else "RESOURCE_EXHAUSTED"
        return Measurement(Bytes(0, 0, peak, 0), fits, refused, 1.0, 0.0, times)

    for module in (plans, scaling, suggest):
        monkeypatch.setattr(module, "measure_step", measure)
    monkeypatch.setattr("vit_jax.plan.topologies.Topology.has_estimates", True)

    def make(usable, **values):
        here = topology()
        chip = here.chip._replace(usable_bytes=usable)
        small = dataclasses.replace(here, chip=chip)
        prepare = functools.partial(set_up, devices=small.devices)
        return make_plan(prepare(tiny_config(**values)), small), prepare

    make.compiled = compiled
    return make


def test_changes_have_memory_and_time(plan_of):
    plan, prepare = plan_of(12_500, batch_size=256, **{"mesh.data": 4})
    # 64 images per device: 16,400 bytes.
    assert not plan.measurement.fits
    rows = suggest.suggest(plan, prepare)["changes"]
    assert [(as_flags(row["set"]), row["peak"], row["fits"]) for row in rows] == [
        ("--config.model.remat=dots", 14_800, False),
        ("--config.model.remat=full", 13_200, False),
        ("--config.momentum_dtype=bfloat16", 14_400, False),
        ("--config.accum_steps=2", 13_200, False),
        ("--config.accum_steps=4", 11_600, True),
        # The mesh has grown to all eight devices.
        ("--config.mesh.data=1 --config.mesh.fsdp=-1", 4_450, True),
    ]
    assert {row["time"] is None for row in rows[:4]} == {True}  # nothing fits
    assert not any(row["extrapolated"] or row["problem"] for row in rows)


def test_time_is_relative_to_the_recipe(plan_of):
    plan, prepare = plan_of(20_000, batch_size=256, **{"mesh.data": 4})
    rows = suggest.suggest(plan, prepare)["changes"]
    assert [row["time"] for row in rows[:3]] == [
        {"hyb": 2.0, "cyc": 2.0},
        {"hyb": 2.0, "cyc": 2.0},
        {"hyb": 1.0, "cyc": 1.0},
    ]


def test_all_changes_are_combined_if_none_is_enough(plan_of):
    plan, prepare = plan_of(2_500, batch_size=256, **{"mesh.data": 1})
    rows = suggest.suggest(plan, prepare)["changes"]
    assert [row["fits"] for row in rows[:-1]] == [False] * 5
    assert rows[-1]["set"] == {
        "model.remat": "full",
        "momentum_dtype": "bfloat16",
        "accum_steps": 4,
    }
    assert rows[-1]["peak"] == 8_000 + 3_200


def test_current_settings_are_not_suggested(plan_of):
    plan, prepare = plan_of(
        20_000,
        batch_size=64,
        momentum_dtype="bfloat16",
        accum_steps=2,
        **{"mesh.data": 2, "mesh.fsdp": 4, "model.remat": "dots"},
    )
    rows = suggest.suggest(plan, prepare)["changes"]
    assert [row["set"] for row in rows] == [
        {"model.remat": "full"},
        {"accum_steps": 4},
        {"accum_steps": 8},
    ]
    # A batch of 64 on eight devices cannot be divided into sixteen or more parts.
    assert rows[2]["peak"] and not rows[2]["problem"]
    plan, prepare = plan_of(20_000, batch_size=16, **{"mesh.data": 8})
    problems = [row["problem"] for row in suggest.suggest(plan, prepare)["changes"]]
    assert problems[4].count("batch_size=16 must be divisible by 8 devices") == 1


def test_the_largest_batch_is_found_in_few_compilations(plan_of):
    plan, prepare = plan_of(11_000 + 8 * 1000, batch_size=32, **{"mesh.data": 2})
    plan_of.compiled.clear()
    found = suggest._largest_batch(plan, prepare)
    # 90 images per device fit; in multiples of eight, 88.
    assert found == {"batch_size": 176, "peak": 10_000 + 8_800}
    assert plan_of.compiled == [16, 176]


def test_largest_batch_of_a_recipe_that_does_not_fit(plan_of):
    plan, prepare = plan_of(10_900, batch_size=512, **{"mesh.data": 2})
    found = suggest._largest_batch(plan, prepare)
    assert found == {"batch_size": 16, "peak": 10_800}
    plan, prepare = plan_of(9_900, batch_size=512, **{"mesh.data": 2})
    assert suggest._largest_batch(plan, prepare) == {"batch_size": 0, "peak": None}


def test_batches_are_multiples_of_the_recipes_parts(plan_of):
    values = {"accum_steps": 3, "mesh.data": 2, "augment.repeats": 4}
    plan, prepare = plan_of(11_000, batch_size=12, **values)
    found = suggest._largest_batch(plan, prepare)
    # 60 images would fill the memory; 2 · 3 and 4 divide 60.
    assert found["batch_size"] == 60


def test_search_does_not_trust_a_wrong_line():
    guess = suggest._next_guess
    assert guess({64: 500, 32: 300}, {64, 32}, 1000, 8) == 144
    # A refused size is an upper bound.
    assert guess({64: 500, 144: 1100, 32: 300}, {64, 32}, 1000, 8) == 128
    assert guess({64: 500, 96: 900, 32: 300}, {64, 32}, 1000, 8) == 88
    assert guess({64: 500, 72: 1100}, {64}, 1000, 8) == 0
    # Close enough to the limit; and memory that does not grow.
    assert guess({64: 985, 32: 500}, {64, 32}, 1000, 8) == 0
    assert guess({64: 500, 32: 500}, {64, 32}, 1000, 8) == 512
