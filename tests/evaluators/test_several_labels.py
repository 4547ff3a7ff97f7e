"""Numbers of data with several labels or a single yes or no, against scikit-learn."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from vit_jax.errors import UserError
from vit_jax.evaluators import classification
from vit_jax.evaluators.classification import Classification
from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT

NAMES = tuple("abcdef")


def make_targets(rng, count):
    """Returns multi-hot labels; class "f" has no example, many examples no label."""
    targets = rng.random((count, 6)) < 0.2
    targets[:, 5] = False
    return targets


def as_labels(targets):
    return [tuple(np.flatnonzero(row).tolist()) for row in targets]


@pytest.fixture
def data(pixels):
    rng = np.random.default_rng(0)
    targets = make_targets(rng, 50)
    # Few levels, so that many scores are equal.
    scores = np.clip(rng.integers(0, 9, (50, 6)) * 20 + targets * 90, 0, 255)
    return pixels(scores, as_labels(targets), NAMES, multi_label=True), targets, scores


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_all_numbers(data, evaluate, logits_of, threshold):
    source, targets, scores = data
    found = evaluate(
        Classification,
        source,
        outputs=INDEPENDENT,
        loss="sigmoid",
        threshold=threshold,
    )
    numbers = found.numbers
    logits = logits_of(scores)
    predicted = 1 / (1 + np.exp(-logits)) > threshold
    seen = targets[:, :5]
    expected = {
        "mean_average_precision": metrics.average_precision_score(seen, scores[:, :5]),
        "macro_f1": metrics.f1_score(
            targets, predicted, average="macro", zero_division=np.nan
        ),
        "micro_f1": metrics.f1_score(targets, predicted, average="micro"),
        "exact_match": metrics.accuracy_score(targets, predicted),
        "loss": np.sum(np.logaddexp(0, logits) - targets * logits, axis=1).mean(),
    }
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, abs=1e-6), name
    assert numbers["classes_without_positives"] == 1

    # Examples without any label leave top-1 and top-5, as those of ImageNet-ReaL do.
    labelled = targets.any(axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    right = np.take_along_axis(targets, order, axis=1)[labelled]
    assert numbers["top1"] == right[:, 0].mean()
    assert numbers["top5"] == right[:, :5].any(axis=1).mean()
    assert (numbers["examples"], numbers["labelled"]) == (50, labelled.sum())
    assert labelled.sum() < 50

    precision, recall, f1, examples = metrics.precision_recall_fscore_support(
        targets, predicted, zero_division=np.nan
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for the class without positive examples
        average = metrics.average_precision_score(targets, scores, average=None)
    average[5] = np.nan
    columns = [precision, recall, f1, examples, average]
    names = ("precision", "recall", "f1", "examples", "average_precision")
    for name, column in zip(names, columns, strict=True):
        np.testing.assert_allclose(found.by_class[name], column, atol=1e-12)


def test_a_perfect_model_is_perfect(pixels, evaluate):
    targets = make_targets(np.random.default_rng(1), 30)
    source = pixels(targets * 255, as_labels(targets), NAMES, multi_label=True)
    found = evaluate(Classification, source, outputs=INDEPENDENT, loss="sigmoid")
    names = {"top1", "mean_average_precision", "macro_f1", "micro_f1", "exact_match"}
    assert {found.numbers[name] for name in names} == {1.0}
    assert found.numbers["labelled"] < found.numbers["examples"]


def test_exclusive_outputs_are_judged_by_their_probabilities(data, evaluate, logits_of):
    """Checks labels such as ImageNet-ReaL's with a softmax model."""
    source, targets, scores = data
    found = evaluate(Classification, source, outputs=EXCLUSIVE).numbers
    odds = np.exp(logits_of(scores))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    expected = metrics.average_precision_score(targets[:, :5], probabilities[:, :5])
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    exact = ((probabilities > 0.5) == targets).all(axis=1).mean()
    assert found["exact_match"] == pytest.approx(exact)


def test_without_any_label_only_what_is_defined_is_reported(pixels, evaluate):
    source = pixels([[0, 0]] * 3, [()] * 3, ("a", "b"), multi_label=True)
    found = evaluate(Classification, source, outputs=INDEPENDENT, loss="sigmoid")
    assert found.numbers.keys() == {
        *("loss", "examples", "bad_images", "labelled"),
        *("exact_match", "classes_without_positives"),
    }
    assert found.numbers["exact_match"] == 1.0


def test_too_many_scores_are_not_kept(data, evaluate, monkeypatch, caplog):
    monkeypatch.setattr(classification, "fits", lambda examples, classes: False)
    options = {"outputs": INDEPENDENT, "loss": "sigmoid"}
    found = evaluate(Classification, data[0], **options).numbers
    assert "mean_average_precision" not in found
    assert "macro_f1" in found
    assert "needs all 50 × 6 scores" in caplog.text
    with pytest.raises(UserError, match="evaluate on fewer images"):
        evaluate(Classification, data[0], wanted=("mean_average_precision",), **options)


@pytest.mark.parametrize("threshold", [0, 1, "half", 50])
def test_a_threshold_is_a_probability(data, evaluate, threshold):
    with pytest.raises(UserError, match=r"threshold=.*: expected a number from 0 to 1"):
        evaluate(Classification, data[0], threshold=threshold)


@pytest.mark.parametrize("multi_label", [True, False])
def test_one_output_is_right_on_its_side_of_the_threshold(
    pixels, evaluate, multi_label
):
    scores = np.array([[200], [100], [140], [20], [250], [120]])
    yes = np.array([1, 1, 0, 0, 1, 0], bool)
    if multi_label:
        source = pixels(scores, as_labels(yes[:, None]), ("cat",), multi_label=True)
    else:
        source = pixels(scores, yes.astype(int).tolist(), ("another", "cat"))
    found = evaluate(
        Classification, source, outputs=INDEPENDENT, loss="sigmoid", names=("cat",)
    ).numbers
    predicted = scores[:, 0] > 127
    assert found["top1"] == metrics.accuracy_score(yes, predicted) == 4 / 6
    assert "top5" not in found
    average = metrics.average_precision_score(yes, scores[:, 0])
    assert found["mean_average_precision"] == pytest.approx(average)
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(yes, predicted))


def test_one_output_on_one_class_is_not_right_by_construction(pixels, evaluate):
    source = pixels([[200], [100], [90], [20]], [0] * 4, ("cat",))
    found = evaluate(
        Classification, source, outputs=INDEPENDENT, loss="sigmoid", per_class=True
    )
    assert found.numbers["top1"] == 1 / 4
    assert found.by_class["top1"].tolist() == [1 / 4]
