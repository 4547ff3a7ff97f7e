"""Requests to stop, at any time."""

import os
import signal

import pytest

from vit_jax.checkpoints.reading import has_checkpoint, load_description
from vit_jax.evaluators import examples
from vit_jax.stop_signals import stop_signals
from vit_jax.train import loop
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.processes.interrupts import Interrupted, Interrupts


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_every": 2}
    return lambda **values: tiny_config(**smallest | {"eval_batch_size": 120} | values)


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def splits_by_step(lines):
    return [(line["step"], line["split"]) for line in lines]


@pytest.fixture
def read(tmp_path):
    import json

    def read():
        lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        return splits_by_step(map(json.loads, lines))

    return read


def test_a_signal_during_evaluation_saves_the_step_and_evaluates_later(
    tiny, tmp_path, monkeypatch, read, capfd
):
    run = str(tmp_path / "run")
    add_up = examples.add_up

    def stopped_after_a_batch(eval_step, params, batches, mesh, **options):
        def some():
            for batch in batches:
                yield batch
                ask_to_stop()

        return add_up(eval_step, params, some(), mesh, **options)

    with monkeypatch.context() as patch:
        patch.setattr(examples, "add_up", stopped_after_a_batch)
        with pytest.raises(
            Interrupted, match="SIGTERM at step 2; the checkpoint is sa"
        ):
            train_and_evaluate(tiny(), run)
    assert "stopping: the step in progress is finished" in capfd.readouterr().err
    assert load_description(run).step == 2
    assert read() == [(1, "train"), (2, "train")]

    train_and_evaluate(tiny(), run)
    assert read()[2:] == [(2, "eval"), (3, "train"), (4, "train"), (4, "eval")]


@pytest.fixture
def not_to_end():
    """Installs handlers, as some programs do, so that no signal ends this process."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_before_the_first_step_leaves_nothing_behind(
    tiny, tmp_path, monkeypatch, not_to_end
):
    run = str(tmp_path / "run")
    opened = loop.open_sources

    def slow(*arguments):
        ask_to_stop()
        return opened(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_sources", slow)
        with pytest.raises(Interrupted, match="before the first step") as stopped:
            train_and_evaluate(tiny(), run)
    assert stopped.value.exit_status == 143
    assert not has_checkpoint(run)
    # The directory can still be used for any run.
    assert train_and_evaluate(tiny(learning_rate=0.5), run)["examples"] == 360


def test_the_second_signal_takes_effect_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.begin()
        assert interrupts.received is None
        ask_to_stop()
        assert interrupts.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


WARNINGS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.mark.parametrize("number", WARNINGS)
def test_warnings_of_schedulers_never_end_a_run_at_once(number, capfd):
    before = [signal.getsignal(one) for one in WARNINGS]
    with Interrupts() as interrupts:
        interrupts.begin()
        for _ in range(3):  # as SIGXCPU comes every second, and SIGHUP often twice
            os.kill(os.getpid(), number)
        assert interrupts.received == number
        # SLURM sends SIGTERM half a minute before it kills.
        ask_to_stop()
        assert interrupts.received == number
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    said = capfd.readouterr().err.splitlines()
    noted = "stopping: the step in progress is finished and saved first"
    assert said == [noted, f"{noted}; a second Ctrl-C or SIGTERM ends the run at once"]
    assert [signal.getsignal(one) for one in WARNINGS] == before
    assert Interrupted(number, 3).exit_status == 128 + number


def test_an_ignored_warning_stays_ignored():
    """As under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            interrupts.begin()
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.received is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert interrupts.received == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_systems_without_these_signals_have_the_others(monkeypatch):
    for number in WARNINGS:
        monkeypatch.delattr(signal, number.name)  # as on Windows
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
