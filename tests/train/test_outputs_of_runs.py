"""Warnings of outputs that will not mean what the labels say."""

import types

import pytest
from ml_collections import ConfigDict

from vit_jax.objectives.classification import Classification
from vit_jax.train import start


@pytest.mark.parametrize(
    ("loss", "classes", "several", "words"),
    [
        ("softmax", 2, True, "can have several labels, but the outputs are trained as"),
        ("softmax", 1, False, "a single class, of which a softmax learns nothing"),
        ("softmax", 2, False, ""),
        ("sigmoid", 2, True, ""),
        ("sigmoid", 1, True, ""),
    ],
)
def test_outputs_that_do_not_suit_the_labels_are_named(
    loss, classes, several, words, caplog
):
    start._warn_of_outputs(
        types.SimpleNamespace(
            info=types.SimpleNamespace(num_classes=classes, multi_label=several),
            config=ConfigDict({"loss": loss, "dataset": "mine"}),
            objective=Classification,
        )
    )
    assert len(caplog.messages) == bool(words)
    assert words in caplog.text
