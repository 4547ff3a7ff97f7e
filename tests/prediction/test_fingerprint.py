"""The fingerprint that tells whether results in a file can be continued."""

from types import SimpleNamespace

import numpy as np
import pytest

from vit_jax import predict
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models.architecture import Architecture


def model(**changes):
    parts = {
        "params": {"a": {"kernel": np.arange(4.0)}, "b": np.zeros(2)},
        "architecture": Architecture(16, 1, 32, 2, (4, 4), (8, 8), 2),
        "preprocessing": Preprocessing((8, 8)),
        "class_names": ("cat", "dog"),
        "outputs": "exclusive",
    }
    return SimpleNamespace(**parts | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"params": {"a": {"kernel": np.arange(4.0) + 1e-6}, "b": np.zeros(2)}},
        {"params": {"a": {"bias": np.arange(4.0)}, "b": np.zeros(2)}},
        {"params": {"a": {"kernel": np.arange(4.0)}, "b": np.zeros((2, 1))}},
        {"architecture": Architecture(16, 1, 32, 4, (4, 4), (8, 8), 2)},
        {"preprocessing": Preprocessing((8, 8), mean=(0.4,))},
        {"class_names": ("dog", "cat")},
        {"outputs": "independent"},
    ],
)
def test_whatever_changes_results_changes_the_fingerprint(changes):
    assert predict._fingerprint(model()) == predict._fingerprint(model())
    assert predict._fingerprint(model(**changes)) != predict._fingerprint(model())
