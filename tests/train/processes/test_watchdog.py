"""Reports of phases that take too long, with the place in the code."""

import threading
import time

import pytest

from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.processes import watchdog
from vit_jax.train.processes.watchdog import Watchdog


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watchdog, "AT_LEAST", 0.1)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_unusually_slow_phases_are_reported_with_stacks(caplog):
    with Watchdog() as watching:
        for _ in range(3):
            watching.begin("a step")
        wait_for(lambda: "a step is still not done" in caplog.text)  # it hangs here
        first = len(caplog.records)
        wait_for(lambda: len(caplog.records) > first)  # and is reported again, later
        watching.begin("")
    assert "s (usually " in caplog.text
    assert "s); stacks of all threads" in caplog.text
    assert "test_watchdog.py" in caplog.text
    assert "in wait_for" in caplog.text
    assert caplog.messages[-1].startswith("a step has taken")
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_each_kind_of_phase_has_its_own_usual_time(caplog, monkeypatch):
    monkeypatch.setattr(watchdog, "AT_LEAST_FIRST", 1e6)
    with Watchdog() as watching:
        for _ in range(3):
            watching.begin("a step")
        watching.begin("a save")  # never done before
        time.sleep(0.3)
        watching.begin("")  # nothing
        time.sleep(0.3)
    assert not caplog.records


def test_a_run_is_watched(tiny_config, tmp_path, change_batches, caplog):
    def late(number, batch):
        if number == 3:
            wait_for(lambda: "a training step is still not done" in caplog.text)
        return batch

    change_batches(late)
    train_and_evaluate(tiny_config(**{"mesh.data": 1}), str(tmp_path / "run"))
    assert "in late" in caplog.text
