"""Foreign words for what outputs mean.

The right values are those of transformers: its configs accept three problem types, the
losses of its models are cross-entropy, binary cross-entropy and squared error for them,
and its image-classification pipeline applies a sigmoid to a single output.
"""

import pytest

from vit_jax.errors import UserError
from vit_jax.weights.formats.meaning import read_outputs, written_outputs


@pytest.mark.parametrize(
    ("value", "classes", "outputs"),
    [
        ("single_label_classification", 3, "exclusive"),
        ("multi_label_classification", 3, "independent"),
        ("multi_label", 3, "independent"),
        ("regression", 3, "numbers"),
        (None, 3, "exclusive"),
        ("", 3, "exclusive"),
        # A single output is a yes or no, unless the file says that it is a number.
        ("single_label_classification", 1, "independent"),
        ("multi_label_classification", 1, "independent"),
        ("regression", 1, "numbers"),
        (None, 1, "independent"),
        # Google's ImageNet-21k; what a file says counts more.
        (None, 21_843, "independent"),
        ("single_label_classification", 21_843, "exclusive"),
        (None, 21_841, "exclusive"),
    ],
)
def test_problem_types(value, classes, outputs):
    assert read_outputs({"problem_type": value}, classes) == (outputs, ())


def test_a_missing_problem_type_is_the_usual_one():
    assert read_outputs({}, 5) == ("exclusive", ())


def test_an_unknown_problem_type_is_reported():
    outputs, (sentence,) = read_outputs({"problem_type": "ranking"}, 3)
    assert outputs == "exclusive"
    assert "problem_type 'ranking'" in sentence
    assert "assumed outputs='exclusive'" in sentence


def test_a_problem_type_of_the_wrong_kind_is_refused():
    with pytest.raises(UserError, match="problem_type is 3, expected a text"):
        read_outputs({"problem_type": 3}, 3)


@pytest.mark.parametrize(
    ("outputs", "classes", "written"),
    [
        ("exclusive", 3, {}),  # as transformers writes it
        ("exclusive", 21_843, {"problem_type": "single_label_classification"}),
        ("independent", 3, {"problem_type": "multi_label_classification"}),
        # Without it, transformers would train a single output with squared errors.
        ("independent", 1, {"problem_type": "multi_label_classification"}),
        ("numbers", 3, {"problem_type": "regression"}),
        ("numbers", 0, {}),
    ],
)
def test_what_is_written_is_read_again(outputs, classes, written):
    assert written_outputs(outputs, classes) == written
    if classes:
        assert read_outputs(written, classes) == (outputs, ())
