"""The confusion matrix and what follows from it, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluators import confusion
from vit_jax.evaluators.confusion import Cell, Confusion


def random_counts(waiting, monkeypatch):
    """Returns labels, predictions and their matrix, added in several parts."""
    monkeypatch.setattr(confusion, "_WAITING", waiting)
    rng = np.random.default_rng(0)
    labels = rng.choice(6, 300, p=[0.6, 0.2, 0.1, 0.05, 0.05, 0.0])
    guesses = rng.choice(5, 300)  # class 5 never occurs at all
    predicted = np.where(rng.random(300) < 0.6, labels, guesses)
    matrix = Confusion(6)
    for start in range(0, 300, 64):
        part = slice(start, start + 64)
        padded = np.append(labels[part], 5), np.append(predicted[part], -1)
        matrix.add(*(column.astype(np.int32) for column in padded))
    return labels, predicted, matrix


@pytest.mark.parametrize("waiting", [1, 100, 10_000])
def test_cells(waiting, monkeypatch):
    labels, predicted, matrix = random_counts(waiting, monkeypatch)
    dense = np.zeros((6, 6), int)
    for cell in matrix.cells():
        dense[cell.label, cell.predicted] = cell.count
    expected = metrics.confusion_matrix(labels, predicted, labels=range(6))
    np.testing.assert_array_equal(dense, expected)


def test_numbers_of_classes(monkeypatch):
    labels, predicted, matrix = random_counts(100, monkeypatch)
    found = matrix.by_class()
    precision, recall, f1, examples = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(6), zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)
    np.testing.assert_array_equal(found.examples, examples)
    balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy == pytest.approx(balanced, abs=1e-12)
    macro = metrics.f1_score(labels, predicted, average="macro")
    assert found.macro_f1 == pytest.approx(macro, abs=1e-12)
    micro = metrics.f1_score(labels, predicted, average="micro")
    assert found.micro_f1 == pytest.approx(micro, abs=1e-12)


def test_a_class_that_is_only_predicted_lowers_macro_f1():
    """Checks scikit-learn's convention, which evaluating on a part of classes meets."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    matrix = Confusion(3)
    matrix.add(labels, predicted)
    found = matrix.by_class()
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.macro_f1 == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )
    assert found.balanced_accuracy == pytest.approx((1 / 2 + 1) / 2)


def test_the_largest_confusions():
    matrix = Confusion(100_000)  # the memory is that of the cells that occur
    pairs = [(7, 7)] * 9 + [(7, 99_999)] * 3 + [(3, 7)] * 5 + [(1, 2)]
    matrix.add(*np.array(pairs, np.int32).T)
    assert matrix.largest(2) == [Cell(3, 7, 5), Cell(7, 99_999, 3)]


def test_nothing_counted():
    found = Confusion(2).by_class()
    assert np.isnan([found.balanced_accuracy, found.macro_f1, found.micro_f1]).all()
