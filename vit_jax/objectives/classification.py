"""Supervised classification with one or several classes per image."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.objectives.flexible import at, drawn
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.losses import smooth_labels, to_targets
from vit_jax.objectives.mixing import Examples, make_mixing
from vit_jax.objectives.protocol import (
    OPTIONAL_KEYS,
    Batch,
    Context,
    Given,
    Images,
    Labels,
    Objective,
    Params,
    Sums,
)
from vit_jax.objectives.training_loss import TrainingLoss


class Classification(Objective):
    """An objective: the loss of the labels, after any mixing and label smoothing.

    `config.loss_options` are options of the loss; see `TrainingLoss`.

    It also reports `accuracy`: the mean of the targets, before smoothing, at the
    predicted class. For a mixed example, this is the share of the predicted label. An
    example without any label is left out of it, because no prediction could be right.
    """

    reads_schedule = False
    reads = OPTIONAL_KEYS
    flexible = True

    def __init__(self, given: Given):
        self._given, self._config = given, given.config
        self._mixing = make_mixing(given.config.mixing)
        self._loss = TrainingLoss(given.config, given.info, given.class_counts)
        self.inputs = {
            "image": Images(given.train_chain, given.architecture.channels),
            "label": Labels(given.info.num_classes, given.info.multi_label),
        }

    @staticmethod
    def num_classes(config, info) -> int:
        """Returns the number of classes of the data."""
        del config
        return info.num_classes

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws the model's parameters at random."""
        return init_model(self._given, key)

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Any
    ) -> tuple[Batch, Key[Array, ""]]:
        """Erases and mixes images if the config asks for it."""
        if self._mixing is None:
            return batch, key
        key, mixing_key = jax.random.split(key)
        images, targets, weights = self._mixing(
            mixing_key,
            Examples(
                normalised(batch["image"], self._given.preprocessing),
                self._targets(batch),
                batch["mask"],
            ),
        )
        return {**batch, "image": images, "label": targets, "mask": weights}, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums loss and accuracy over the examples, weighted by `mask`."""
        images = normalised(batch["image"], self._given.preprocessing)
        logits = self._given.placed_model(
            params, images, train=True, key=key, **at(context.choice)
        )
        return self.judged(logits, batch) | drawn(context.choice, batch["mask"]), ()

    def judged(self, logits: Float[Array, "b k"], batch: Batch) -> Sums:
        """Sums loss and accuracy of logits, weighted by the prepared batch's `mask`."""
        targets = self._targets(batch)
        right, judged = _accuracy(logits, targets)
        if self._config.mixing.binary_targets:
            targets = (targets > 0).astype(jnp.float32)
        # Smoothing is linear, so smoothing a mixture equals mixing smoothed targets.
        smooth = smooth_labels(targets, self._config.label_smoothing)
        losses, weights = self._loss(logits, targets, smooth)
        mask = batch["mask"]
        weight = labelled = jnp.sum(mask)
        if weights is not None:
            weight = jnp.sum(weights * mask)
        if self._given.info.multi_label:
            labelled = jnp.sum(jnp.where(judged, mask, 0.0))
        return {
            "loss": (jnp.sum(losses * mask), weight),
            "accuracy": (jnp.sum(right * mask), labelled),
        }

    def _targets(self, batch: Batch) -> Array:
        return to_targets(batch["label"], self._given.architecture.num_classes)


def _accuracy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Returns how right each prediction is, and which examples can be judged, [b].

    A single output is a yes or no, of which both can be right.
    """
    if logits.shape[-1] == 1:
        right = (logits > 0) == (targets > 0.5)
        return right[:, 0].astype(jnp.float32), jnp.ones(len(logits), bool)
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    right = jnp.take_along_axis(targets, best, axis=-1)[:, 0]
    return right, (targets > 0).any(axis=-1)


def init_model(given: Given, key: Key[Array, ""]) -> Params:
    """Draws the parameters of the model alone at random."""
    height, width = given.architecture.image_size
    images = jnp.zeros((1, height, width, given.architecture.channels))
    return given.model.init(key, images)["params"]
