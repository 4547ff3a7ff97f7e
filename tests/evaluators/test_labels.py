"""Labels of evaluation data that find the model's outputs by name."""

import logging

import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators.labels import by_output
from vit_jax.models.outputs import INDEPENDENT

ANIMALS = ("bird", "cat", "dog")


@pytest.fixture
def match(pixels, subject, caplog):
    """Returns a function: names of model and data → labels, and what was logged."""
    caplog.set_level(logging.INFO)

    def run(known, found, labels, *, count=None, classes="names", **more):
        several = more.pop("multi_label", False)
        source = pixels([[0]] * len(labels), labels, found, multi_label=several)
        source.num_classes = more.pop("data_classes", source.num_classes)
        model = subject(count or len(known), names=known, **more)
        matched = by_output(source, model, classes)
        assert matched.num_classes in (model.architecture.num_classes, None)
        return [matched[i].label for i in range(len(matched))], caplog.messages

    return run


def test_the_same_classes_are_not_touched(pixels, subject):
    source = pixels([[0]], [1], ANIMALS)
    assert by_output(source, subject(3, names=ANIMALS)) is source


def test_another_order(match):
    assert match(ANIMALS, ("dog", "bird", "cat"), [0, 1, 2]) == ([2, 0, 1], [])


def test_numbers_as_text_and_by_value(match):
    """Checks folders "0" … "11" as a run saw them that sorted their names as text."""
    by_value = tuple(map(str, range(12)))
    as_text = tuple(sorted(by_value))
    labels, _ = match(as_text, by_value, list(range(12)))
    assert [as_text[label] for label in labels] == list(by_value)


def test_a_part_of_the_classes(match):
    labels, logged = match(ANIMALS, ("dog", "cat"), [0, 1, 1])
    assert labels == [2, 1, 1]
    assert logged == [
        "the data have 2 of the model's 3 classes: a prediction of any other class is "
        "wrong"
    ]


def test_unknown_classes_are_named(match):
    with pytest.raises(UserError) as error:
        match(ANIMALS, ("cat", "Bird", "fish"), [0])
    assert "3 in the data, 3 in the model" in str(error.value)
    assert "Only in the model: bird, dog." in str(error.value)
    assert "Only in the data: Bird, fish; did you mean 'bird'?" in str(error.value)
    assert "classes='known'" in str(error.value)
    assert "classes='order'" in str(error.value)
    with pytest.raises(UserError) as error:
        match(tuple("123"), tuple(map(str, range(1, 13))), [0])
    assert "Only in the data: 4, 5, 6," in str(error.value)
    # As many names on both sides would be needed.
    assert "classes='order'" not in str(error.value)


def test_unknown_classes_can_be_left_out(match):
    labels, logged = match(
        ANIMALS, ("fish", "dog", "bird"), [0, 1, 2, 0], classes="known"
    )
    assert labels == [2, 0]
    assert logged[0] == (
        "classes that the model does not know: fish; their images are left out (2)"
    )
    with pytest.raises(UserError, match="Only in the data: fish"):
        match(ANIMALS, ("fish",), [0], classes="known")


def test_a_name_of_two_outputs_cannot_be_matched(match):
    known = ("crane", "owl", "crane")  # a bird and a machine, as in ImageNet
    assert match(known, ("owl",), [0])[0] == [1]
    with pytest.raises(UserError, match=r"the same name: crane\. Leave these classes"):
        match(known, ("crane", "owl"), [0])


def test_names_for_other_outputs_are_unknown(match):
    labels, logged = match(ANIMALS, ("dog", "cat"), [0, 1], count=2)
    assert labels == [0, 1]
    assert "the model's class names are unknown: output 0 is taken" in logged[0]


def test_other_outputs_are_another_fingerprint(pixels, subject):
    class Identified(pixels):
        def fingerprint(self):
            return {"labels": "0"}

    source = Identified([[0]], [0], ("dog", "bird"))
    prints = [
        by_output(source, subject(3, names=names)).fingerprint()
        for names in (ANIMALS, ANIMALS[::-1])
    ]
    assert prints[0] != prints[1]
    assert prints[0]["labels"] == prints[1]["labels"] == "0"


def test_several_labels(match):
    labels, _ = match(ANIMALS, ("dog", "bird"), [(0, 1), (), (1,)], multi_label=True)
    assert labels == [(0, 2), (), (0,)]


@pytest.mark.parametrize(
    ("known", "found", "classes", "logged"),
    [
        (
            (),
            ANIMALS,
            "names",
            "the model's class names are unknown: output 0 is taken for 'bird', 1 is "
            "taken for 'cat', 2 is taken for 'dog'",
        ),
        (
            ANIMALS,
            (),
            "names",
            "the class names of the data are unknown: output 0 is taken for 'bird', 1 "
            "is taken for 'cat', 2 is taken for 'dog'",
        ),
        (
            ANIMALS,
            ("a", "b", "c"),
            "order",
            "class names are ignored: output bird is taken for 'a', cat is taken for "
            "'b', dog is taken for 'c'",
        ),
    ],
)
def test_an_assumed_order_is_said(known, found, classes, logged, match):
    labels, said = match(known, found, [2, 0], count=3, classes=classes, data_classes=3)
    assert labels == [2, 0]
    assert said == [logged]


def test_without_names_a_part_cannot_be_matched(match):
    with pytest.raises(UserError, match=r"2 in the data, 3 in the model.*unknown"):
        match((), ("a", "b"), [0], count=3)


def test_an_unknown_way_of_matching_is_refused(match):
    with pytest.raises(UserError, match="classes='number': choose 'names', 'known'"):
        match(ANIMALS, ANIMALS, [0], classes="number")


@pytest.mark.parametrize(
    ("known", "found", "expected", "logged"),
    [
        (
            ("cat",),
            ("cat", "dog"),
            [(0,), ()],
            "the model's one output is 'cat'; no is 'dog'",
        ),
        (
            ("dog",),
            ("cat", "dog"),
            [(), (0,)],
            "the model's one output is 'dog'; no is 'cat'",
        ),
        (
            (),
            ("cat", "dog"),
            [(), (0,)],
            "the model's one output is taken for 'dog'; no is 'cat'",
        ),
        (
            ("dog",),
            ("bird", "dog", "cat"),
            [(), (0,)],
            "the model's one output is 'dog'; no is 'bird', 'cat'",
        ),
        ((), ("dog",), [0, 0], "the model's one output is taken for 'dog'"),
    ],
)
def test_one_output_is_a_yes_or_no(known, found, expected, logged, match):
    given = [0, 1] if len(found) > 1 else [0, 0]
    labels, said = match(known, found, given, count=1, outputs=INDEPENDENT)
    assert labels == expected
    assert said == [logged]


@pytest.mark.parametrize(
    ("known", "found", "message"),
    [
        (("fish",), ("cat", "dog"), "Only in the data: cat, dog"),
        ((), ("bird", "cat", "dog"), "one output, a yes or no, .*3 classes"),
    ],
)
def test_one_output_of_another_class_is_refused(known, found, message, match):
    with pytest.raises(UserError, match=message):
        match(known, found, [0], count=1, outputs=INDEPENDENT)


def test_a_model_without_a_head_is_explained(pixels, subject):
    source = pixels([[0, 0]], [0], ("a", "b"))
    with pytest.raises(UserError, match=r"has no head.*with the evaluator knn"):
        by_output(source, subject(0))
