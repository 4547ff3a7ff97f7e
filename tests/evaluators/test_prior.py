"""Post-hoc logit adjustment: how common the classes are is taken from the outputs."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.examples import Data

# The model prefers the common class a.
SCORES = [[200, 190, 40], [210, 100, 150], [180, 170, 175]]
NAMES = "abc"


@pytest.fixture
def measured(subject, pixels):
    """Returns a function that evaluates; it takes the labels of the training images."""

    def run(train, *, names=NAMES, outputs="exclusive", train_split="train", **options):
        several = outputs == "independent"
        labels = [(1,), (0,), (1, 2)] if several else [1, 0, 2]
        images = np.zeros((len(train), 3))
        splits = {
            "test": pixels(SCORES, labels, NAMES, several),
            "train": pixels(images, train, NAMES, several),
        }
        data = Data(splits.__getitem__, "test", train_split, 4)
        evaluator = Classification(subject(3, outputs, names), data, **options)
        params = np.zeros(())
        evaluator.compile(params)
        return evaluator.measure(params).numbers

    return run


def losses(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(3), labels].mean()


def test_the_prior_of_the_training_images_is_subtracted(measured, logits_of):
    train = [0] * 8 + [1] + [2]
    plain = measured(train, loss="softmax")
    assert plain["top1"] == pytest.approx(1 / 3)
    found = measured(train, loss="softmax", logit_adjustment=1.0)
    adjusted = logits_of(SCORES) - np.log([0.8, 0.1, 0.1])
    assert found["loss"] == pytest.approx(losses(adjusted, [1, 0, 2]), rel=1e-5)
    assert found["top1"] == pytest.approx((adjusted.argmax(1) == [1, 0, 2]).mean())
    assert found["top1"] > plain["top1"]
    half = logits_of(SCORES) - 0.5 * np.log([0.8, 0.1, 0.1])
    found = measured(train, loss="softmax", logit_adjustment=0.5)
    assert found["loss"] == pytest.approx(losses(half, [1, 0, 2]), rel=1e-5)


def test_classes_are_counted_as_outputs(measured, logits_of):
    # The model has the classes in another order than the data.
    found = measured([0] * 8 + [1, 2], names="bca", logit_adjustment=1.0)
    adjusted = logits_of(SCORES) - np.log([0.1, 0.1, 0.8])
    assert found["loss"] == pytest.approx(losses(adjusted, [0, 2, 1]), rel=1e-5)


def test_of_questions_the_odds_are_subtracted(measured, logits_of):
    train = [(0,), (0, 1), (0,), (2,), ()]
    found = measured(
        *(train,),
        outputs="independent",
        loss="sigmoid",
        logit_adjustment=1.0,
    )
    adjusted = logits_of(SCORES) - np.log([3 / 2, 1 / 4, 1 / 4])
    targets = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 1]])
    expected = np.log1p(np.exp(np.where(targets, -adjusted, adjusted))).sum(1).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([0, 2], {"logit_adjustment": 1.0}, "'train', 1 of 3 classes .*: 'b'; leave"),
        ([0, 1, 2], {"logit_adjustment": "1"}, "logit_adjustment='1': expected a num"),
        ([0, 1, 2], {"logit_adjustment": float("nan")}, "adjustment=nan: expected"),
        (
            [0, 1, 2],
            {"logit_adjustment": 1.0, "train_split": ""},
            "no split for training, in which to count",
        ),
    ],
)
def test_mistakes_are_explained(measured, train, options, message):
    with pytest.raises(UserError, match=message):
        measured(train, **options)


def test_a_class_of_all_images_has_no_odds(measured):
    with pytest.raises(UserError, match="the same class, which has no odds"):
        measured(
            *([(0, 1), (0, 2)],),
            outputs="independent",
            logit_adjustment=1.0,
        )
