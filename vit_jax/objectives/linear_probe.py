"""Linear probing: a linear classifier on the normalised features of a frozen model."""

import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vit_jax.checkpoints.description import MODEL
from vit_jax.config import without_effect
from vit_jax.errors import Problems
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.flexible import at, drawn
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.protocol import Batch, Context, Given, Params, Sums

HEAD = "head"


class LinearProbe(Classification):
    """An objective: the loss of a linear head on normalised features of a frozen model.

    This is the linear probe of MAE (arXiv:2111.06377, appendix A). The head's input is
    normalised channel by channel, without parameters: by the mean and the variance of
    the batch in training, by their running averages afterwards. The averages are folded
    into the head that is evaluated, saved and loaded: that is an ordinary model.
    """

    groups = MappingProxyType({r"(?!head/).*": {"frozen": True}})

    def __init__(self, given: Given, epsilon: float = 1e-6, momentum: float = 0.1):
        """Makes the objective.

        Args:
          given: the run.
          epsilon: added to the variance.
          momentum: share of a batch in the running averages.

        Raises:
          UserError: lists options that are impossible, and keys of the config that
            cannot have an effect.
        """
        if problems := _problems(given, epsilon, momentum):
            raise Problems(*problems)
        super().__init__(given)
        self._epsilon, self._momentum = epsilon, momentum

    def init_state(self, params: Params) -> Any:
        """Makes the running averages: mean 0 and variance 1, as PyTorch does."""
        features = params[HEAD]["kernel"].shape[0]
        return self._state(params, jnp.zeros(features), jnp.ones(features))

    def features(
        self, params: Params, images: Array, **how: Any
    ) -> Float[Array, "b d"]:
        """Computes the input of the head, as in evaluation: nothing is dropped."""
        _, found = self._given.placed_model(
            params, images, intermediates=("pre_logits",), **how
        )
        return found["pre_logits"].astype(jnp.float32)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums loss and accuracy, and the moments of the features, over the examples.

        The features are normalised by the mean and the biased variance of this
        microbatch, of all devices.
        """
        images = normalised(batch["image"], self._given.preprocessing)
        x = self.features(params, images, **at(context.choice))
        counts = batch["mask"] > 0
        moments = measured(x, counts, context.state["mean"])
        variance = moments.within / jnp.maximum(moments.count, 1.0)
        x = (x - moments.mean[None]) / jnp.sqrt(variance + self._epsilon)[None]
        vectors: Any = [x]  # one for each head
        [logits] = self._given.placed_model(params, vectors, method="head")
        sums = self.judged(logits, batch) | drawn(context.choice, batch["mask"])
        return sums, moments.sums

    def after(self, state: Any, additive: Any, params: Params, step: Array) -> Any:
        """Moves the averages towards the moments of the whole batch, once a step.

        As in PyTorch, the variance that is averaged is unbiased.
        """
        count = jnp.maximum(additive["count"], 1.0)
        offset = additive["offset"] / count
        # Microbatches have means of their own, which add to the whole batch's variance.
        squares = additive["within"] + additive["between"] - count * offset**2
        variance = squares / jnp.maximum(count - 1, 1.0)
        # Without examples, or with only one of them, there is no variance.
        share = jnp.where(additive["count"] > 1, self._momentum, 0.0)
        mean = state["mean"] + share * offset
        variance = state["variance"] + share * (variance - state["variance"])
        return self._state(params, mean, variance)

    def _state(self, params: Params, mean: Array, variance: Array) -> Any:
        head = folded(params[HEAD], mean, jnp.sqrt(variance + self._epsilon))
        return {"mean": mean, "variance": variance, MODEL: {HEAD: head}}


class Moments(NamedTuple):
    """The moments of the features of a microbatch, for each channel.

    Attributes:
      count: number of examples.
      mean: their mean.
      within: sum of the squared distances from it.
      sums: what can be added up over microbatches; distances are from a `reference`,
        near which rounding does no harm.
    """

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    within: Float[Array, " d"]
    sums: dict[str, Array]


def measured(
    x: Float[Array, "b d"], counts: Bool[Array, " b"], reference: Float[Array, " d"]
) -> Moments:
    """Computes the moments of the examples that count.

    Args:
      x: features.
      counts: which examples count.
      reference: a value near the mean; see `Moments`.
    """
    count = jnp.sum(counts, dtype=jnp.float32)
    total = functools.partial(jnp.sum, axis=0, where=counts[:, None])
    mean = total(x) / jnp.maximum(count, 1.0)
    within = total((x - mean[None]) ** 2)
    offset = mean - reference
    return Moments(
        count,
        mean,
        within,
        {
            "count": count,
            "offset": count * offset,
            "within": within,
            "between": count * offset**2,
        },
    )


def folded(
    head: dict[str, Float[Array, "..."]],
    mean: Float[Array, " d"],
    deviation: Float[Array, " d"],
) -> dict[str, Float[Array, "..."]]:
    """Returns the head that computes from x what `head` does from normalised x."""
    kernel = head["kernel"] / deviation[:, None]
    bias = head["bias"] - jnp.matmul(mean, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"kernel": kernel, "bias": bias}


def _problems(given: Given, epsilon: float, momentum: float) -> list[str]:
    config, found = given.config, []
    if not epsilon > 0:
        found.append(f"objective_options.epsilon={epsilon}: give a number above 0")
    if not 0 < momentum <= 1:
        found.append(
            f"objective_options.momentum={momentum}: give a number above 0 and at most "
            "1; it is the share of a batch in the running averages"
        )
    rows = config.batch_size // max(config.accum_steps, 1)
    if rows < 2:
        found.append(
            f"linear_probe normalises by the variance of a microbatch, but "
            f"batch_size={config.batch_size} with accum_steps={config.accum_steps} "
            "leaves a single image; use larger ones"
        )
    if getattr(given.architecture, "num_pooled", 1) > 1:
        found.append(
            "linear_probe trains one head, but this model has two, for the class and "
            "the distillation token; choose other weights"
        )
    unused = (
        "model.dropout_rate",
        "model.stochastic_depth",
        "layer_decay",
        "ema_decay",
    )
    found += without_effect(config, unused, "linear_probe trains the head alone")
    return found
