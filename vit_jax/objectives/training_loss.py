"""The loss of a run's labels: a row of `LOSSES` with its options and class weights."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config import Config
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.models.outputs import INDEPENDENT, of_loss
from vit_jax.objectives.loss_options import read_loss_options
from vit_jax.objectives.losses import LOSSES, squared_log_partition


class TrainingLoss:
    """The loss that `config.loss` and `config.loss_options` describe.

    Class weights multiply, in a softmax, the term of each class, as in PyTorch's
    CrossEntropyLoss. Of yes-or-no questions, they multiply the loss of an image by the
    weight of its label, as in the code of arXiv:1901.05555; or, if an image may have
    several labels, that of each question, as in BCEWithLogitsLoss. In the first two
    cases the loss of a batch is the weighted mean, so only their ratios matter.

    `z_loss` adds to the loss of each image a multiple of its squared log-partition
    function, which in a batch is averaged with the same weights.
    """

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        class_counts: Callable[[], np.ndarray],
    ):
        """Makes the loss.

        Args:
          config: `loss`, `loss_options` and `sampling` are read.
          info: the classes of the data.
          class_counts: returns the number of training examples of each class, float64
            [k]; called only if an option needs it.

        Raises:
          UserError: see `read_loss_options`.
        """
        options = read_loss_options(config, info, class_counts)
        independent = of_loss(config.loss) == INDEPENDENT
        self._by_image = independent and not info.multi_label
        by_question = independent and info.multi_label
        self._weights = None if by_question else options.class_weights
        arrays = {"pos_weight": options.pos_weight}
        if not self._by_image:
            arrays["weights"] = options.class_weights
        arrays = {name: x for name, x in arrays.items() if x is not None}
        self._loss = functools.partial(LOSSES[config.loss], **options.own)
        self._arrays, self._shift = arrays, options.shift
        self._z_loss = options.z_loss

    def __call__(
        self,
        logits: Float[Array, "b k"],
        targets: Float[Array, "b k"],
        smooth: Float[Array, "b k"] | None = None,
    ) -> tuple[Float[Array, " b"], Float[Array, " b"] | None]:
        """Computes the losses of examples.

        Args:
          logits: the model's outputs.
          targets: how far each class is right, 0 … 1.
          smooth: the targets after label smoothing, if there is any.

        Returns:
          The losses, and the weights by whose sum to divide theirs; None: all are 1.
        """
        smooth = targets if smooth is None else smooth
        if self._shift is not None:
            logits = logits.astype(jnp.float32) + _float32(self._shift)[None]
        arrays = {name: _float32(x) for name, x in self._arrays.items()}
        losses = self._loss(logits, smooth, **arrays)
        weights = None
        if self._weights is not None:
            weights = _mean_weight(targets, _float32(self._weights))
            losses = losses * weights if self._by_image else losses
        if self._z_loss:
            z_losses = self._z_loss * squared_log_partition(logits)
            losses += z_losses if weights is None else z_losses * weights
        return losses, weights


def _float32(x: np.ndarray) -> Array:
    return jnp.asarray(x, jnp.float32)


def _mean_weight(
    targets: Float[Array, "b k"], weights: Float[Array, " k"]
) -> Float[Array, " b"]:
    """Returns the mean weight of each example's labels; 1 without any label."""
    total = jnp.sum(targets, axis=-1)
    weighted = jnp.sum(targets * weights[None], axis=-1)
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 1.0)
