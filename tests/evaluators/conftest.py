"""A model whose logits are the pixels of its images, and data with any labels."""

import types

import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import Example
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.protocol import Subject
from vit_jax.models.outputs import EXCLUSIVE

PIXELS = 16


class Pixels:
    """Examples whose images are scores: uint8 [n, at most 16], 0 to 255."""

    def __init__(self, scores, labels, class_names, multi_label=False):
        images = np.zeros((len(scores), PIXELS), np.uint8)
        images[:, : np.shape(scores)[1]] = scores
        self.images = images.reshape(-1, 4, 4, 1)
        self.all_labels, self.class_names = labels, tuple(class_names)
        self.num_classes, self.multi_label = len(self.class_names), multi_label

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Example(self.images[index], self.all_labels[index], f"pixels[{index}]")

    def labels(self):
        return np.array(self.all_labels, np.int32)

    def weights(self):
        return np.ones(len(self))

    def class_counts(self):
        places = np.concatenate([np.atleast_1d(label) for label in self.all_labels])
        return np.bincount(places.astype(int), minlength=self.num_classes).astype(float)


def logits(scores):
    """Returns the model's logits of scores; half of 255 has the logit 0."""
    return (np.asarray(scores, np.float64) / 255 - 0.5) / 0.5 * 4


@pytest.fixture
def pixels():
    """Returns the class of data."""
    return Pixels


@pytest.fixture
def logits_of():
    """Returns the function from scores to logits."""
    return logits


@pytest.fixture
def evaluate():
    """Returns a function that measures the model with an evaluator."""

    def run(kind, source, *, outputs=EXCLUSIVE, names=None, wanted=(), **options):
        names = source.class_names if names is None else names
        count = options.pop("num_outputs", len(names) or source.num_classes)
        evaluator = kind(
            _subject(count, outputs, names, wanted),
            Data(lambda split: source, "test", "train", options.pop("batch_size", 4)),
            **options,
        )
        params = np.zeros(())
        evaluator.compile(params)
        measure = getattr(evaluator, "measure", evaluator)
        return measure(params)

    return run


@pytest.fixture
def subject():
    """Returns the function that makes the model."""
    return _subject


def _subject(count, outputs=EXCLUSIVE, names=(), wanted=()):
    model = types.SimpleNamespace(
        architecture=types.SimpleNamespace(num_classes=count),
        apply=lambda variables, x: 4 * x.reshape(len(x), -1)[:, :count],
        clone=lambda **_: model,
    )
    preprocessing = Preprocessing((4, 4), 1, eval_transform="")
    mesh = sharding.make_mesh(1)
    return Subject(model, preprocessing, mesh, tuple(names), outputs, frozenset(wanted))
