"""The accuracy that training reports."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import default_config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.protocol import Context
from vit_jax.objectives.training_loss import TrainingLoss

PREPROCESSING = Preprocessing((1, 1), 1)


def accuracy(logits, labels, mask, *, multi_label, loss="softmax"):
    """Returns the accuracy of a batch whose images are the logits."""
    count = logits.shape[-1]
    # Not made from a whole run: the images are logits already.
    objective = object.__new__(Classification)
    objective._config = config = default_config()
    config.loss = loss
    info = DatasetInfo(
        *("logits", count, {"train": 4}, None, "train", ""), multi_label=multi_label
    )
    objective._loss = TrainingLoss(config, info, lambda: np.ones(count))
    objective._given = types.SimpleNamespace(
        info=info,
        architecture=types.SimpleNamespace(num_classes=count),
        preprocessing=PREPROCESSING,
        placed_model=lambda params, images, **_: images[:, 0, 0],
    )
    batch = {
        "image": logits[:, None, None],
        "label": jnp.asarray(labels),
        "mask": jnp.asarray(mask),
    }
    context = Context((), (), jnp.zeros((), jnp.int32), None)
    sums, _ = objective.loss({}, batch, jax.random.key(0), context)
    total, weight = sums["accuracy"]
    return float(total), float(weight), float(sums["loss"][1])


LOGITS = jnp.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
MASK = [1.0, 1.0, 1.0, 0.0]


def test_examples_without_a_label_leave_the_accuracy():
    labels = [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    found = accuracy(LOGITS, labels, MASK, multi_label=True, loss="sigmoid")
    assert found == (1.0, 2.0, 3.0)


def test_with_one_label_all_examples_count():
    found = accuracy(LOGITS, [0, 1, 1, 1], MASK, multi_label=False)
    assert found == (2.0, 3.0, 3.0)


@pytest.mark.parametrize("multi_label", [True, False])
def test_one_output_is_right_on_its_side(multi_label):
    logits = jnp.array([[2.0], [-1.0], [-3.0], [1.0]])
    labels = np.array([[1.0], [1.0], [0.0], [0.0]], np.float32)
    found = accuracy(logits, labels, MASK, multi_label=multi_label, loss="sigmoid")
    assert found == (2.0, 3.0, 3.0)
