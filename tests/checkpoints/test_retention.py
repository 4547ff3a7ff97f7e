"""Retention of checkpoints: the newest, and the best by a metric."""

import types

import pytest

from vit_jax.checkpoints.retention import Retention

# Step → metrics of its evaluation.
MEASURED = {
    10: {"top1": 0.5, "top5": 0.9, "loss": 1.2},
    20: {"top1": 0.7, "top5": 0.8, "loss": 1.1},
    30: {"top1": 0.6, "top5": 0.95, "loss": 1.3},
    40: {"top1": 0.7, "top5": 0.95, "loss": 1.1},
}
SIGNS = {"top1": 1.0, "top5": 1.0, "loss": -1.0}
BEST = {"top1": 20, "top5": 30, "loss": 20}  # among equals the oldest


@pytest.mark.parametrize("metric", SIGNS)
def test_the_best_is_the_highest_accuracy_or_the_lowest_loss(metric):
    retention = Retention(1, metric, SIGNS[metric])
    assert retention.best([10, 20]) is None
    for step, metrics in MEASURED.items():
        retention.note(step, metrics)
    assert retention.best(MEASURED) == BEST[metric]
    assert retention.best([*MEASURED, 50]) == BEST[metric]  # 50 was not measured
    checkpoints = [types.SimpleNamespace(step=step) for step in (*MEASURED, 50)]
    kept = retention.should_preserve(checkpoints, context=None)
    assert [x.step for x, stays in zip(checkpoints, kept, strict=True) if stays] == [
        BEST[metric],
        50,
    ]


def test_what_is_not_a_number_is_never_the_best():
    retention = Retention(1, "loss", -1.0)
    for step, loss in ((10, float("nan")), (20, 1.5), (30, 1.2), (40, float("nan"))):
        retention.note(step, {"loss": loss})
    assert retention.best([10, 20, 30, 40]) == 30
    assert retention.best([10, 40]) is None


def test_some_steps_are_always_kept():
    retention = Retention(1, always={20, 35})
    checkpoints = [types.SimpleNamespace(step=step) for step in MEASURED]
    kept = retention.should_preserve(checkpoints, context=None)
    assert kept == [False, True, False, True]
