"""Early stopping: when it ends a run, what it records, and what a resume does."""

import json
import math

import pytest
from ml_collections import ConfigDict

from vit_jax.checkpoints.reading import load_description
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.evaluators import choosing
from vit_jax.evaluators.protocol import Evaluator
from vit_jax.train import recorder
from vit_jax.train.early_stopping import Patience
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("patience", "sign", "min_delta", "values", "stops_after"),
    [
        # Counted by hand, as in Keras's EarlyStopping.
        (1, 1, 0.0, [0.1, 0.2, 0.2], 3),  # equal is not better
        (2, 1, 0.0, [0.1, 0.2, 0.1, 0.3, 0.3, 0.2, 0.9], 6),
        (2, -1, 0.0, [0.9, 0.5, 0.6, 0.5, 0.1], 4),
        (2, 1, 0.1, [0.5, 0.58, 0.59, 0.9], 3),  # each better by less than 0.1
        (2, 1, 0.1, [0.5, 0.55, 0.65, 0.7, 0.7], 5),
        (2, 1, 0.0, [NAN, NAN, 0.5], 2),
        (3, 1, 0.0, [NAN, NAN, 0.5, NAN, 0.4, 0.5], 6),
        (1, -1, 0.0, [INF, 5.0, INF], 3),
        (3, 1, 0.0, [0.1, 0.2, 0.3], None),
        (0, 1, 0.0, [0.3, 0.2, 0.1], None),
    ],
)
def test_a_run_stops_after_evaluations_without_improvement(
    patience, sign, min_delta, values, stops_after
):
    counted = Patience(patience, "top1", sign, min_delta)
    stopped = None
    for number, value in enumerate(values, 1):
        ahead = counted.after(10 * number, {"top1": value})
        counted.note(10 * number, {"top1": value})
        counted.note(10 * number, {"loss": value})  # another metric does not count
        assert ahead == counted
        stopped = stopped or (number if counted.exhausted else None)
    assert stopped == stops_after


class Scripted(Evaluator):
    """An evaluator whose value rises up to step 4 of a run, then falls."""

    better = {"value": 1.0}  # noqa: RUF012
    values = iter(())

    def __init__(self, subject, data):
        del subject, data

    def __call__(self, params, watch=iter):
        return {"value": next(self.values)}


class Once(Scripted):
    def __call__(self, params, watch=iter):
        return {"value": 7.0}


@pytest.fixture
def tiny(tiny_config, monkeypatch):
    table = {**choosing.EVALUATORS, "scripted": Scripted, "once": Once}
    monkeypatch.setattr(choosing, "EVALUATORS", table)

    waits = {"patience": 2, "patience_metric": "own/value"}

    def make(**values):
        config = tiny_config(
            total_steps=8,
            log_every=8,
            checkpoint_every=8,
            eval_split="test[:20]",
            **{"mesh.data": 1, "model.depth": 1} | waits | values,
        )
        config.evaluators = ConfigDict(
            {
                "own": {"kind": "scripted", "every": 1},
                "last": {"kind": "once", "every": 0},
            }
        )
        return config

    return make


def lines(workdir, split):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] == split]


def test_an_early_stop_is_recorded_and_not_resumed_past(
    tiny, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "vit_jax")
    # A run that is cut off stops where an undisturbed one would have stopped.
    with monkeypatch.context() as patch:
        patch.setattr(Scripted, "__call__", _failing_when_empty(iter([1, 3, 2])))
        with pytest.raises(UserError, match="out of values"):
            train_and_evaluate(tiny(), str(tmp_path))
    assert load_description(tmp_path).step == 4
    monkeypatch.setattr(Scripted, "values", iter([2.5, 4, 0, 0, 0]))
    numbers = train_and_evaluate(tiny(), str(tmp_path))
    assert lines(tmp_path, "early_stop") == [
        {
            "step": 4,
            "split": "early_stop",
            "patience": 2,
            "best_step": 2,
            "best_own/value": 3,
        }
    ]
    assert "ends early after 2 evaluations without a better own/value" in caplog.text
    assert (
        "step 4: the run ends early: the best own/value, 3, was measured at step 2, "
        "2 evaluations ago (patience=2)" in caplog.text
    )
    # As at any end, all evaluators have run, and the state is saved.
    assert numbers == lines(tmp_path, "eval")[-1]
    assert numbers["last/value"] == 7.0
    assert "top1" in numbers
    assert load_description(tmp_path).step == 4

    # The same command ends at once, with the same result.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train_and_evaluate(tiny(), str(tmp_path)) == numbers
    assert (tmp_path / "metrics.jsonl").read_text() == before

    # With more patience the run continues, and counts the evaluations before.
    train_and_evaluate(tiny(patience=4), str(tmp_path))
    assert [line["step"] for line in lines(tmp_path, "early_stop")] == [4]
    assert load_description(tmp_path).step == 8
    assert [line["own/value"] for line in lines(tmp_path, "eval")][4:] == [4, 0, 0, 0]


def _failing_when_empty(values):
    def call(self, params, watch=iter):
        for value in values:
            return {"value": value}
        raise UserError("out of values")

    return call


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patience_metric": ""}, "patience=2 without a metric to wait for"),
        ({"patience_metric": "own/valeu"}, r"choose from .* did you mean 'own/value'"),
        (
            {"patience_metric": "last/value"},
            r"evaluators.last.every=0, last/value is",
        ),
        ({"patience_metric": "top1"}, r"with eval_every=0, top1 is measured only at t"),
        ({"patience": 0}, "patience_metric without patience has no effect"),
        ({"patience": -1}, "patience=-1: must be at least 0"),
        ({"patience_min_delta": -0.5}, "patience_min_delta=-0.5: must be at least 0"),
    ],
)
def test_patience_that_cannot_work_is_refused(tiny, values, message):
    with pytest.raises(UserError, match=message):
        set_up(tiny(**values))


def test_the_metric_of_keep_best_is_the_default(tiny):
    config = tiny(patience_metric="", keep_best="loss", eval_every=2)
    patience = Patience.of(config, set_up(config).better)
    assert (patience.metric, patience.sign) == ("loss", -1.0)
    assert Patience.of(default_config(), {}).evaluations == 0


def test_all_processes_stop_when_the_first_one_does(tiny, tmp_path, monkeypatch):
    """Otherwise the others, which may see files differently, would wait forever."""
    asked = []

    def as_the_first_says(answer):
        asked.append(answer)
        return True

    monkeypatch.setattr(recorder, "as_the_first_says", as_the_first_says)
    monkeypatch.setattr(Scripted, "values", iter([1]))
    numbers = train_and_evaluate(tiny(), str(tmp_path))
    assert load_description(tmp_path).step == 1
    assert numbers["last/value"] == 7.0
    # Asked whether the evaluation is the last one, and whether the step is.
    assert asked == [False, False]
