"""Reports of a classification."""

import numpy as np

from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.report import details, lines
from vit_jax.models.outputs import INDEPENDENT


def test_one_label(pixels, evaluate):
    scores = np.eye(3) * 255
    source = pixels(scores[[0, 1, 1, 2]], [0, 1, 0, 0], "abc")
    found = evaluate(Classification, source, details=True)
    # Two outputs of one name are told apart, and only the data's classes are listed.
    report = details(found, ("crane", "ship", "crane"), [0, 1], per_class=True)
    assert report["per_class"] == [
        {
            **{"class": "crane", "examples": 3, "top1": 1 / 3},
            **{"precision": 1.0, "recall": 1 / 3, "f1": 0.5},
        },
        {
            **{"class": "ship", "examples": 1, "top1": 1.0},
            **{"precision": 0.5, "recall": 1.0, "f1": 2 / 3},
        },
    ]
    assert report["confusion"] == {
        "crane [0]": {"crane [0]": 1, "ship": 1, "crane [2]": 1},
        "ship": {"ship": 1},
    }
    text = "\n".join(lines(found.numbers | report))
    assert "  top-1               50.00%" in text
    assert "       1 of      3  crane [0] → ship" in text


def test_many_classes_have_no_matrix_unless_asked_for(pixels, evaluate):
    source = pixels([[0, 9], [9, 0]], [0, 0], "ab")
    found = evaluate(Classification, source, details=True)
    names = tuple(map(str, range(101)))
    report = details(found, names, range(2), per_class=False)
    assert report == {
        "largest_confusions": [
            {"class": "0", "predicted": "1", "count": 1, "examples": 2}
        ]
    }
    assert "confusion" in details(found, names, range(2), per_class=True)


def test_one_output(pixels, evaluate):
    source = pixels([[200], [20], [90]], [(0,), (), (0,)], ("cat",), multi_label=True)
    found = evaluate(Classification, source, outputs=INDEPENDENT, loss="sigmoid")
    text = lines(found.numbers | details(found, ("cat",), [0], per_class=False))
    words = [line.split("  ")[1] for line in text]
    assert words == ["accuracy", "average precision", "F1", "loss"]
    assert "66.67%" in text[0]


def test_what_is_undefined_is_null(pixels, evaluate):
    source = pixels([[0, 9]], [()], "ab", multi_label=True)
    found = evaluate(Classification, source, outputs=INDEPENDENT, loss="sigmoid")
    rows = details(found, ("a", "b"), [0, 1], per_class=True)["per_class"]
    assert rows[0]["average_precision"] is None
    assert rows[0]["top1"] is None
    assert "–" in "\n".join(lines(found.numbers | {"per_class": rows}))
