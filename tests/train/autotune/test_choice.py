"""The choice of attention: tested, logged, kept in the work directory and reused."""

import json
import logging
import shutil

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.attention import formulations
from vit_jax.train.autotune import choice as attention_choice
from vit_jax.train.autotune.choice import with_chosen_attention
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up


@pytest.fixture
def tiny_config(tiny_config):
    """Returns a function that makes configs with one block, which is enough here."""
    return lambda **values: tiny_config(**{"model.depth": 1} | values)


@pytest.fixture
def tries(monkeypatch):
    """Records the formulations tried, with made-up times, the shortest first."""
    done, times = [], {"pallas": 1.0, "xla": 2.0, "explicit": 3.0}
    run = attention_choice.Trial.run

    def noted(trial, name):
        done.append(name)
        run(trial, name)
        if name in trial.milliseconds:
            trial.milliseconds[name] = times[name]

    monkeypatch.setattr(attention_choice.Trial, "run", noted)
    return done


@pytest.fixture
def setup(tiny_config):
    return set_up(tiny_config())


def failing(*_):
    raise RuntimeError("out of registers")


def choose(setup, workdir, *names):
    return with_chosen_attention(setup, str(workdir), names).model.attention


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def record(workdir):
    return json.loads((workdir / "attention.json").read_text())


def test_the_fastest_is_chosen_logged_and_recorded(setup, tmp_path, tries, caplog):
    caplog.set_level(logging.INFO)
    assert choose(setup, tmp_path, "pallas", "xla") == "pallas"
    assert caplog.messages == [
        "attention is pallas; a layer's forward and backward pass: xla 2.00 ms, "
        "pallas 1.00 ms"
    ]
    kept = record(tmp_path)
    assert kept["choice"] == "pallas"
    assert kept["milliseconds"] == {"pallas": 1.0, "xla": 2.0}
    assert kept["problems"] == {}
    sizes = {"images": 16, "tokens": 5, "heads": 2, "channels": 8, "dtype": "float32"}
    assert sizes.items() <= kept["circumstances"].items()

    # A resumed run uses it, whatever would be the fastest now.
    tries.clear()
    caplog.clear()
    assert choose(setup, tmp_path, "pallas", "xla") == "pallas"
    assert not tries
    assert caplog.messages == ["attention is pallas, as chosen when the run began"]


def test_a_kernel_that_fails_costs_a_warning(
    setup, tmp_path, tries, caplog, monkeypatch
):
    monkeypatch.setitem(formulations.IMPLEMENTATIONS, "pallas", failing)
    assert choose(setup, tmp_path, "pallas", "explicit", "xla") == "xla"
    assert tries == ["xla", "pallas", "explicit"]
    [warning] = warnings(caplog)
    problem = "fails (RuntimeError: out of registers)"
    assert warning == f"attention is not pallas: it {problem}"
    assert record(tmp_path)["problems"] == {"pallas": problem}


def test_changed_circumstances_cause_new_trials(
    setup, tiny_config, tmp_path, tries, monkeypatch
):
    choose(setup, tmp_path, "pallas", "xla")
    changes = (
        {"batch_size": 32},
        {"accum_steps": 2},
        {"compute_dtype": "bfloat16"},
        {"mesh.data": 4, "mesh.tensor": 2},
        {"image_size": (12,), "augment.train": "resize"},
    )
    before = record(tmp_path)["circumstances"]
    for values in changes:
        tries.clear()
        choose(set_up(tiny_config(**values)), tmp_path, "pallas", "xla")
        assert tries == ["xla", "pallas"], values
        now = record(tmp_path)["circumstances"]
        assert now != before
        before = now
    monkeypatch.setattr(attention_choice.jax, "__version__", "0.0")
    tries.clear()
    choose(set_up(tiny_config(**changes[-1])), tmp_path, "pallas", "xla")
    assert tries == ["xla", "pallas"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choice": "xla"}'])
def test_a_damaged_record_is_replaced(setup, tmp_path, tries, caplog, text):
    (tmp_path / "attention.json").write_text(text)
    assert choose(setup, tmp_path, "pallas", "xla") == "pallas"
    assert "attention.json is damaged and will be replaced" in caplog.messages[0]
    assert record(tmp_path)["choice"] == "pallas"


class Killed(BaseException):
    """A kill, to which nothing in the process can react."""


def test_a_kernel_that_ended_the_process_is_not_retried(
    setup, tmp_path, tries, caplog, monkeypatch
):
    def kill(*_):
        raise Killed

    monkeypatch.setitem(formulations.IMPLEMENTATIONS, "pallas", kill)
    with pytest.raises(Killed):
        choose(setup, tmp_path, "pallas", "explicit", "xla")
    assert record(tmp_path)["trying"] == ["pallas"]
    tries.clear()
    # A second one is not retried either, if it ends the process in the same way.
    monkeypatch.setitem(formulations.IMPLEMENTATIONS, "explicit", kill)
    with pytest.raises(Killed):
        choose(setup, tmp_path, "pallas", "explicit", "xla")
    assert choose(setup, tmp_path, "pallas", "explicit", "xla") == "xla"
    assert tries == ["xla", "explicit", "xla"]
    two = warnings(caplog)[-2:]
    for name, message in zip(("pallas", "explicit"), two, strict=True):
        assert message.startswith(f"attention is not {name}: it crashed the process")
        assert str(tmp_path / "attention.json") in message
    assert record(tmp_path)["choice"] == "xla"


def test_a_requested_formulation_is_not_tried(
    tiny_config, tmp_path, tries, monkeypatch
):
    monkeypatch.setitem(formulations.IMPLEMENTATIONS, "pallas", failing)
    for name in ("xla", "explicit"):
        setup = set_up(tiny_config(**{"model.attention": name}))
        assert with_chosen_attention(setup, str(tmp_path), ("pallas", "xla")) is setup
    assert not tries
    assert not list(tmp_path.iterdir())


def test_on_the_cpu_nothing_is_tried(setup, tmp_path, tries):
    assert setup.model.attention == formulations.FASTEST_ON_CPU
    assert with_chosen_attention(setup, str(tmp_path)) is setup
    assert not tries
    assert not list(tmp_path.iterdir())


def test_the_first_process_decides(setup, tmp_path, tries, monkeypatch):
    """A second process with other times and no record chooses the same."""
    said = []

    def broadcast(numbers):
        said.append(numbers.tolist())
        # Nothing known; "explicit" crashed; "xla" chosen.
        return np.array([[-1, 0, 1, 0], [2]][len(said) - 1])

    utils = attention_choice.multihost_utils
    monkeypatch.setattr(utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(attention_choice.jax, "process_index", lambda: 1)
    (tmp_path / "attention.json").write_text('{"another": "process writes it"}')
    assert choose(setup, tmp_path, "pallas", "explicit", "xla") == "xla"
    assert tries == ["xla", "pallas"]
    assert said == [[-1, 0, 0, 0], [0]]
    assert record(tmp_path) == {"another": "process writes it"}


def test_a_resumed_run_uses_the_same_formulation(
    tiny_config, tmp_path, tries, monkeypatch
):
    monkeypatch.setattr(
        attention_choice, "attention_candidates", lambda *_: ("explicit", "xla")
    )
    used = []
    attend = formulations.IMPLEMENTATIONS["xla"]

    def noted(*operands):
        used.append(operands)
        return attend(*operands)

    monkeypatch.setitem(formulations.IMPLEMENTATIONS, "xla", noted)
    values = {"total_steps": 2, "checkpoint_every": 1, "eval_split": "test[:8]"}
    config = tiny_config(**values)
    train_and_evaluate(config, str(tmp_path / "run"))
    assert tries == ["xla", "explicit"]
    assert record(tmp_path / "run")["choice"] == "xla"
    used.clear()
    # Simulates an interruption after one step.
    shutil.rmtree(tmp_path / "run/checkpoints/2")
    train_and_evaluate(config, str(tmp_path / "run"))
    assert tries == ["xla", "explicit"]
    assert used
    # Another run's directory is not touched.
    with pytest.raises(UserError, match="belongs to a run with another config"):
        train_and_evaluate(tiny_config(seed=1, **values), str(tmp_path / "run"))
    assert tries == ["xla", "explicit"]
