"""Trials of formulations that fail, are wrong, slow or fast, on simulated devices."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.models.attention import formulations
from vit_jax.train.autotune import trial as attention_trial
from vit_jax.train.autotune.trial import Trial

XLA = formulations.IMPLEMENTATIONS["xla"]


def at_trace(*_):
    raise RuntimeError("Mosaic failed to compile\nand a long story")


def at_run(query, key, value, placement):
    def crash():
        raise ValueError("the chip is on fire")

    nothing = jax.pure_callback(crash, jax.ShapeDtypeStruct((), query.dtype))
    return XLA(query, key, value, placement)[0] + nothing, None


def slowed(by):
    """Makes XLA's formulation some seconds slower."""

    def wait():
        time.sleep(by)
        return np.zeros((), np.float32)

    def attend(query, key, value, placement):
        nothing = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32))
        return XLA(query, key, value, placement)[0] + nothing.astype(query.dtype), None

    return attend


def wrong(query, key, value, placement):
    return 1.05 * XLA(query, key, value, placement)[0], None


def wrong_gradient(query, key, value, placement):
    return XLA(query, key, jax.lax.stop_gradient(value), placement)[0], None


def not_finite(query, key, value, placement):
    """Computes non-finite results for one image, on one of the devices."""
    mixed = XLA(query, key, value, placement)[0]
    return mixed.at[3].set(jnp.nan), None


@pytest.fixture
def trial(monkeypatch):
    """Returns a function that tries the given formulations after XLA's."""

    def run(dtype=jnp.bfloat16, mesh=(4, 1, 2), **kernels):
        for name, kernel in kernels.items():
            monkeypatch.setitem(formulations.IMPLEMENTATIONS, name, kernel)
        found = Trial(sharding.make_mesh(*mesh), (8, 5, 4, 8), dtype)
        found.run("xla")
        for name in kernels:
            if name != "xla":
                found.run(name)
        return found

    return run


@pytest.mark.parametrize("mesh", [(1, 1, 1), (4, 1, 2)])
def test_the_fastest_correct_formulation_is_chosen(trial, mesh):
    slow = trial(kernel=slowed(by=0.02), mesh=mesh)
    assert slow.problems == {}
    assert slow.fastest() == "xla"
    assert slow.milliseconds["kernel"] >= 20 > slow.milliseconds["xla"]

    fast = trial(kernel=formulations._explicit, xla=slowed(by=0.02), mesh=mesh)
    assert fast.fastest() == "kernel"


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (at_trace, r"fails (RuntimeError: Mosaic failed to compile)"),
        (wrong, "is off by 5.0% of the largest value"),
        (wrong_gradient, "is off by 100.0% of the largest value"),
        (not_finite, "is off by inf% of the largest value"),
    ],
)
def test_formulations_that_fail_or_disagree_are_dropped(trial, kernel, problem):
    found = trial(jnp.float32, kernel=kernel)
    assert found.problems == {"kernel": problem}
    assert list(found.milliseconds) == ["xla"]
    assert found.fastest() == "xla"


def test_formulations_that_fail_while_running_are_dropped(trial):
    # One device: on the CPU the others would wait for it, and end the process.
    found = trial(mesh=(1, 1, 1), broken=at_run, explicit=formulations._explicit)
    assert list(found.problems) == ["broken"]
    assert found.problems["broken"].startswith("fails (JaxRuntimeError: ")
    assert set(found.milliseconds) == {"xla", "explicit"}  # the others are still tried


def test_xla_is_used_if_nothing_can_be_compared_with_it(trial):
    found = trial(xla=at_trace, kernel=formulations._explicit)
    assert found.problems["kernel"] == "cannot be compared with xla"
    assert found.fastest() == "xla"


def test_the_time_is_the_median_of_several_runs(trial, monkeypatch):
    steps = iter(np.cumsum([0, 9.0, 0, 1.0, 0, 2.0, 0, 3.0, 0, 1.0]))
    clock = type("", (), {"perf_counter": lambda: float(next(steps))})
    monkeypatch.setattr(attention_trial, "time", clock)
    monkeypatch.setattr(attention_trial, "_REPETITIONS", 5)
    assert trial().milliseconds == {"xla": 2000.0}


def test_a_failure_in_one_process_counts_in_all(trial, monkeypatch):
    """The second of three processes cannot compile it, so no process runs it."""
    asked = []

    def gather(mine):
        asked.append(mine)
        # No failures in XLA's three stages, nor in the kernel's earlier ones.
        return np.array([[mine], [len(asked) > 3], [mine]])

    monkeypatch.setattr(attention_trial.multihost_utils, "process_allgather", gather)
    found = trial(kernel=formulations._explicit)
    assert asked == [False] * 4
    assert found.problems == {"kernel": "fails in process 1"}
    assert list(found.milliseconds) == ["xla"]
