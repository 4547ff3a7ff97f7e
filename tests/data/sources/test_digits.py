"""Tests that the embedded digits are scikit-learn's."""

import numpy as np
from sklearn.datasets import load_digits

from vit_jax.data.sources.digits import NUM_EXAMPLES, Digits


def test_every_digit_occurs_once():
    rows, labels = load_digits(return_X_y=True)
    # Values 0…16 become 0…255, and no two digits are equal.
    expected = {
        np.round(row * (255 / 16)).astype(np.uint8).tobytes(): label
        for row, label in zip(rows, labels, strict=True)
    }
    parts = [Digits(split) for split in NUM_EXAMPLES]
    assert [len(part) for part in parts] == list(NUM_EXAMPLES.values())
    examples = [part[index] for part in parts for index in range(len(part))]
    assert {e.image.tobytes(): e.label for e in examples} == expected
    assert len(examples) == len(expected)
    assert {(e.image.shape, e.image.dtype) for e in examples} == {
        ((8, 8, 1), np.dtype(np.uint8))
    }
