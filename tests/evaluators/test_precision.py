"""Average precision, against values by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_jax.evaluators import precision
from vit_jax.evaluators.precision import Scores, average_precision


@pytest.mark.parametrize(
    ("positive", "scores", "expected"),
    [
        # Positive at ranks 1 and 3 of 4: (1/1 + 2/3) / 2.
        ((0, 0, 1, 1), (0.1, 0.4, 0.35, 0.8), 5 / 6),
        # Three share the best score: all at once, 2 of 3 right.
        ((1, 0, 1, 0), (0.5, 0.5, 0.5, 0.1), 2 / 3),
        # No score says anything: the share of positives.
        ((1, 0, 0, 0), (0.0, 0.0, 0.0, 0.0), 1 / 4),
        ((1, 1), (0.2, 0.3), 1.0),
        ((0, 1), (0.3, 0.2), 1 / 2),
    ],
)
def test_values_by_hand(positive, scores, expected):
    found = average_precision(np.array(positive, bool), np.array(scores, np.float32))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_it_agrees_with_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    positive = rng.random(400) < 0.1
    scores = rng.integers(0, levels, 400).astype(np.float32)
    expected = average_precision_score(positive, scores)
    assert average_precision(positive, scores) == pytest.approx(expected, abs=1e-12)


def test_without_a_positive_there_is_none():
    assert np.isnan(average_precision(np.zeros(3, bool), np.zeros(3, np.float32)))


def test_scores_arrive_in_parts_and_may_be_fewer_than_announced():
    rng = np.random.default_rng(0)
    positive, scores = rng.random((20, 3)) < 0.4, rng.random((20, 3), np.float32)
    kept = Scores(25, 3)
    for part in (slice(0, 8), slice(8, 8), slice(8, 20)):
        kept.add(scores[part], positive[part])
    expected = average_precision_score(positive, scores, average=None)
    np.testing.assert_allclose(kept.average_precisions(), expected, atol=1e-12)


def test_a_limit_bounds_the_memory():
    assert precision.fits(50_000, 5_000)
    assert not precision.fits(50_000, 18_291)
