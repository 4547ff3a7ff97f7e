"""Errors of plain numbers."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.regression import Regression
from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT, NUMBERS

SCORES = [[0], [255], [51], [204], [153]]


def test_absolute_and_squared_error(pixels, evaluate, logits_of):
    # Classes in their order by value, with gaps.
    source = pixels(SCORES, [0, 2, 1, 2, 0], ("-2", "0.5", "3"))
    found = evaluate(Regression, source, outputs=NUMBERS, names=("age",))
    numbers, true = logits_of(SCORES)[:, 0], np.array([-2, 3, 0.5, 3, -2])
    assert found["mean_absolute_error"] == pytest.approx(np.abs(numbers - true).mean())
    assert found["mean_squared_error"] == pytest.approx(((numbers - true) ** 2).mean())
    assert (found["examples"], found["bad_images"]) == (5, 0)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("1", "2", "old"), {}, "classes such as 'old'"),
        (("1", "2", "nan"), {}, "classes such as 'nan'"),
        ((), {}, "classes without names"),
        (("1", "2", "3"), {"num_outputs": 3}, "gives 3 plain numbers"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(
    names, options, message, pixels, evaluate
):
    source = pixels(SCORES, [0, 1, 2, 1, 0], names)
    options = {"num_outputs": 1} | options
    with pytest.raises(UserError, match=message):
        evaluate(Regression, source, outputs=NUMBERS, names=("age",), **options)


def test_several_labels_are_refused(pixels, evaluate):
    source = pixels(SCORES, [(0, 1)] * 5, ("1", "2"), multi_label=True)
    with pytest.raises(UserError, match="may have several labels"):
        evaluate(Regression, source, outputs=NUMBERS, names=("age",))


def test_plain_numbers_have_no_accuracy(pixels, evaluate):
    source = pixels(SCORES, [0] * 5, ("1",))
    with pytest.raises(UserError, match="use the evaluator 'regression'"):
        evaluate(Classification, source, outputs=NUMBERS)


@pytest.mark.parametrize("outputs", [EXCLUSIVE, INDEPENDENT])
def test_classes_have_no_error(outputs, pixels, evaluate):
    source = pixels(SCORES, [0] * 5, ("1",))
    with pytest.raises(UserError, match="so they have no error; use the evaluator 'cl"):
        evaluate(Regression, source, outputs=outputs)
