"""Traces of steps, Weights & Biases, and the shares of time."""

import logging
import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from vit_jax.config import checks
from vit_jax.errors import UserError
from vit_jax.train.choices import CHOICES
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.reporting import goodput, profiling, wandb_run


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_batch_size": 120}
    return lambda **values: tiny_config(**smallest | values)


@pytest.fixture
def wandb(monkeypatch):
    """Replaces the wandb package, and records its calls."""
    module = types.ModuleType("wandb")
    module.started, module.logged, module.finished = [], [], 0

    class Run:
        def log(self, values, step):
            module.logged.append((step, values))

        def finish(self):
            module.finished += 1

    def init(**options):
        module.started.append(options)
        return Run()

    module.init, module.Run = init, Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    module.__spec__ = ModuleSpec("wandb", None)
    return module


def test_metrics_and_a_trace_of_a_resumed_run(tiny, tmp_path, wandb, caplog):
    caplog.set_level(logging.INFO)
    config = tiny(wandb_project="digits", profile_steps=(2, 3))
    train_and_evaluate(config, str(tmp_path))
    points = {(step, name) for step, values in wandb.logged for name in values}
    assert points >= {(step, "train/loss") for step in (1, 2, 3, 4)}
    assert points >= {(4, "eval/top1"), (4, "time/goodput")}
    assert wandb.finished == 1
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    text = traces[0].read_bytes()
    assert b"step_num" in text
    [said] = [record.message for record in caplog.records if "goodput" in record.msg]
    assert "s were steps; starting " in said

    # The same directory again is the same W&B run; no step, so no trace.
    train_and_evaluate(config, str(tmp_path))
    first, second = wandb.started
    assert first["id"] == second["id"]
    assert (second["project"], second["resume"]) == ("digits", "allow")
    assert second["config"]["model"]["width"] == 16
    assert second["dir"] == str(tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) == traces


def test_a_wandb_failure_does_not_end_the_run(
    tiny, tmp_path, wandb, monkeypatch, caplog
):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb.Run, "log", unreachable)
    run = wandb_run.WandbRun(tiny(wandb_project="digits"), tmp_path)
    for step in (1, 2):
        run.write(step, "train", {"loss": 1.0})
    run.close()
    assert caplog.text.count("gets no more metrics: no route to host") == 1
    monkeypatch.setattr(wandb, "init", unreachable)
    wandb_run.WandbRun(tiny(wandb_project="digits"), tmp_path).write(1, "train", {})


def test_wandbs_own_files_do_not_go_to_a_bucket(tiny, tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(wandb_run, "in_bucket", lambda path: path == tmp_path)
    wandb_run.WandbRun(tiny(wandb_project="digits"), tmp_path)
    assert wandb.started[0]["dir"] is None


def test_a_missing_package_is_listed_as_a_problem(tiny, tmp_path, monkeypatch):
    find = wandb_run.importlib.util.find_spec
    monkeypatch.setattr(
        wandb_run.importlib.util,
        "find_spec",
        lambda name: None if name == "wandb" else find(name),
    )
    with pytest.raises(UserError, match=r"2 problem\(s\)") as error:
        train_and_evaluate(tiny(wandb_project="x", loss="y"), str(tmp_path / "run"))
    assert "pip install 'vit_jax[wandb]'" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (3,), (1, 2, 3), (-1, 2)])
def test_impossible_steps_to_trace(tiny, steps):
    found = checks.wrong_values(tiny(profile_steps=steps), CHOICES)
    assert found["profile_steps"].startswith(f"profile_steps={steps}: give the first")


def test_shares_of_the_time(monkeypatch):
    monkeypatch.setattr(goodput, "process_start", lambda: 1000.0)
    monkeypatch.setattr(goodput.time, "time", lambda: 1100.0)
    shares = goodput.goodput({"steps": 80.0, "saving": 5.0, "waiting": 0.0})
    assert shares == {
        "goodput": 0.8,
        "seconds": 100.0,
        "starting": 0.15,
        "saving": 0.05,
        "waiting": 0.0,
    }
    assert goodput.in_words(shares) == (
        "80.0 % of 100 s were steps; starting 15.0 %, saving 5.0 %"
    )


def test_when_the_process_started():
    import time

    started = goodput.process_start()
    assert time.time() - 3600 * 24 < started < goodput._LOADED + 0.1


def test_traces_do_not_go_to_buckets(tiny):
    config = tiny(profile_steps=(1, 2))
    assert "pass a --workdir on a disk" in profiling.untraceable(config, "gs://a/b")[0]
    assert profiling.untraceable(config, "runs/b") == []
    assert profiling.untraceable(tiny(), "gs://a/b") == []
