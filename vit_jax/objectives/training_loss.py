"""The loss of a run's labels: a row of `LOSSES` with its options and class weights.

Options that hold for several losses, beside those of the row:

- `class_weights`: rare classes count more. In a softmax the term of each class is
  weighted, as PyTorch's CrossEntropyLoss does. Of yes-or-no questions, an image with
  one label is weighted as a whole (as in the code of arXiv:1901.05555), and with
  several labels each question (as BCEWithLogitsLoss does). The loss of a batch is the
  weighted mean, so only the ratios of the weights matter, but for several labels.
- `logit_adjustment`: how common a class is, is added to the logits of the training loss
  (arXiv:2007.07314, eq. 10), so that the model itself learns to ignore it.
- `pos_weight`: factors of the terms of right classes.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.config import Config
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.errors import UserError
from vit_jax.models.outputs import INDEPENDENT, of_loss
from vit_jax.objectives.losses import LOSSES
from vit_jax.words import did_you_mean, shortened

_KEY = "loss_options"
WEIGHTS = ("balanced", "sqrt", "effective")  # class weights from the numbers of images
_COMMON = ("class_weights", "beta", "logit_adjustment")
# Option of a row → smallest and largest value.
_RANGES = {
    "gamma": (0.0, math.inf),
    "gamma_neg": (0.0, math.inf),
    "gamma_pos": (0.0, math.inf),
    "clip": (0.0, 0.999),
    "alpha": (-1.0, 1.0),
    "logit_adjustment": (-math.inf, math.inf),
    "beta": (0.0, 0.99999999),
}


class TrainingLoss:
    """The function (logits, targets) → losses and weights of the examples."""

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
          class_counts: returns the number of training examples of each class [k],
            float64; called only if an option needs it.

        Raises:
          UserError: lists the options that are unknown, have no effect, or have a wrong
            value; or a class without training examples has no weight.
        """
        self._info, self._counts = info, functools.cache(class_counts)
        self._independent = of_loss(config.loss) == INDEPENDENT
        self._problems: list[str] = []
        loss, given = LOSSES[config.loss], config.loss_options.to_dict()
        self._check_names(config, given)
        own = {
            name: given[name]
            for name in _keyword_only(loss)
            if name in given and self._check_number(name, given[name])
        }
        by_class = {
            "weights": self._class_weights(given),
            "pos_weight": self._pos_weight(given),
        }
        adjustment = given.get("logit_adjustment", 0.0)
        self._shift = None
        if self._check_number("logit_adjustment", adjustment) and adjustment:
            if (prior := self._log_prior()) is not None:
                self._shift = adjustment * prior
        if config.sampling == "balanced":
            self._check_sampling(given)
        if self._problems:
            raise UserError("\n".join(self._problems))
        # The weight of an image of several labels has no meaning: each question has.
        self._by_image = self._independent and not info.multi_label
        self._weights = by_class["weights"]
        if self._by_image:
            by_class["weights"] = None
        arrays = {
            name: jnp.asarray(x, jnp.float32)
            for name, x in by_class.items()
            if x is not None
        }
        self._loss: Callable[[Any, Any], Any] = lambda logits, targets: loss(
            logits, targets, **arrays, **own
        )

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
            shift = jnp.asarray(self._shift, jnp.float32)
            logits = logits.astype(jnp.float32) + shift[None]
        losses = self._loss(logits, smooth)
        if self._weights is None or (self._independent and not self._by_image):
            return losses, None
        weights = _mean_weight(targets, jnp.asarray(self._weights, jnp.float32))
        return losses * weights if self._by_image else losses, weights

    def _check_names(self, config: Config, given: Mapping[str, Any]) -> None:
        taken = [*_COMMON, *_keyword_only(LOSSES[config.loss])]
        if self._independent:
            taken.append("pos_weight")
        self._problems += [
            f"{_KEY}.{name}: the loss {config.loss!r} does not take it; it takes "
            f"{', '.join(taken)}{did_you_mean(name, taken)}"
            for name in sorted(given.keys() - set(taken))
        ]
        if "beta" in given and given.get("class_weights") != "effective":
            self._problems.append(
                f"{_KEY}.beta has no effect without {_KEY}.class_weights='effective'"
            )

    def _check_number(self, name: str, value: Any) -> bool:
        if name == "gradient_of_focus":
            if isinstance(value, bool):
                return True
            self._problems.append(f"{_KEY}.{name}={value!r}: expected true or false")
            return False
        low, high = _RANGES[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = number and math.isfinite(value) and low <= value <= high
        if name == "alpha" and number and -1 < value < 0:
            right = False
        if not right:
            limits = {
                "alpha": "from 0 to 1, or -1 for none",
                "logit_adjustment": "such as 1.0",
            }
            limit = limits.get(
                name, f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high}"
            )
            self._problems.append(
                f"{_KEY}.{name}={value!r}: expected a number, {limit}"
            )
        return bool(right)

    def _class_weights(self, given: Mapping[str, Any]) -> np.ndarray | None:
        value = given.get("class_weights", "")
        if value == "" or value is None:
            return None
        if not isinstance(value, str):
            found = self._by_name("class_weights", value, least=0.0)
            if found is not None and not found.any():
                self._problems.append(f"{_KEY}.class_weights: all are 0")
            return found
        if value not in WEIGHTS:
            self._problems.append(
                f"{_KEY}.class_weights={value!r}: choose from {', '.join(WEIGHTS)}, or "
                f"give numbers by class{did_you_mean(value, WEIGHTS)}"
            )
            return None
        beta = given.get("beta", 0.9999)
        if not self._check_number("beta", beta):
            return None
        counts = self._counted("class_weights", value)
        return None if counts is None else class_weights(value, counts, beta)

    def _pos_weight(self, given: Mapping[str, Any]) -> np.ndarray | None:
        value = given.get("pos_weight")
        if value is None or not self._independent:
            return None
        if value == "balanced":
            counts = self._counted("pos_weight", value)
            return None if counts is None else (self._examples - counts) / counts
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = [value] * self._info.num_classes
        return self._by_name("pos_weight", value, least=0.0)

    def _log_prior(self) -> np.ndarray | None:
        """Returns log π of the classes; of questions, the logarithm of the odds."""
        counts = self._counted("logit_adjustment", "")
        if counts is None:
            return None
        if not self._independent:
            return np.log(counts / counts.sum())
        if (always := np.flatnonzero(counts >= self._examples)).size:
            self._problems.append(
                f"{_KEY}.logit_adjustment: every training example has the class(es) "
                f"{self._named(always)}, so there are no odds to adjust; leave it out"
            )
            return None
        return np.log(counts / (self._examples - counts))

    def _counted(self, name: str, value: str) -> np.ndarray | None:
        """Returns the training examples of each class, none of them 0."""
        counts = self._counts()
        if not (none := np.flatnonzero(counts == 0)).size:
            return counts
        given = f"={value!r}" if value else ""
        instead = "leave it out" if name == "logit_adjustment" else "give numbers"
        self._problems.append(
            f"{_KEY}.{name}{given}: {none.size} of {counts.size} classes have no "
            f"training example: {self._named(none)}; {instead}, or train on data that "
            "have them"
        )
        return None

    def _by_name(self, name: str, value: Any, least: float) -> np.ndarray | None:
        """Reads numbers by class name (others are 1), or in the order of the classes."""
        names, count = self._names, self._info.num_classes
        numbers: Any = value
        if isinstance(value, Mapping):
            if unknown := sorted(map(str, value.keys() - set(names))):
                self._problems.append(
                    f"{_KEY}.{name}: no such class: {shortened(unknown, repr)}; "
                    f"choose from {shortened(names)}{did_you_mean(unknown[0], names)}"
                )
                return None
            numbers = [value.get(each, 1.0) for each in names]
        try:
            found = np.asarray(numbers, np.float64)
        except (TypeError, ValueError):
            found = np.full(0, np.nan)
        if found.shape != (count,) or not (np.isfinite(found) & (found >= least)).all():
            self._problems.append(
                f"{_KEY}.{name}={value!r:.100}: expected {count} numbers of at least "
                f"{least:g}, one for each class, or numbers by name"
            )
            return None
        return found

    def _check_sampling(self, given: Mapping[str, Any]) -> None:
        counted = [
            name
            for name in ("class_weights", "logit_adjustment", "pos_weight")
            if given.get(name) and not _numbers(name, given[name])
        ]
        if counted:
            self._problems.append(
                f"{_KEY}.{', '.join(counted)} with sampling='balanced', which already "
                "draws all classes equally often: keep one of them"
            )

    @property
    def _examples(self) -> float:
        if not self._info.multi_label:
            return float(self._counts().sum())
        return float(self._info.num_examples[self._info.train_split])

    @property
    def _names(self) -> Sequence[str]:
        names = self._info.class_names
        return names or tuple(map(str, range(self._info.num_classes)))

    def _named(self, classes: np.ndarray) -> str:
        return shortened([self._names[i] for i in classes], repr)


def class_weights(kind: str, counts: np.ndarray, beta: float) -> np.ndarray:
    """Computes class weights from n_k, the number of examples of each class.

    Args:
      kind: "balanced", n / (K · n_k), as in scikit-learn; "sqrt", the root of that;
        "effective", (1 − β) / (1 − β^n_k) (arXiv:1901.05555), scaled to the sum K as
        in its code.
      counts: n_k [K], above 0; n is their sum.
      beta: β of "effective".
    """
    if kind == "effective":
        # As (1 − β) / (1 − β^n), without the loss of digits for β near 1.
        log_beta = math.log(beta) if beta else -math.inf
        weights = -(1 - beta) / np.expm1(counts * log_beta)
        return weights / weights.sum() * counts.size
    weights = counts.sum() / (counts.size * counts)
    return np.sqrt(weights) if kind == "sqrt" else weights


def _mean_weight(
    targets: Float[Array, "b k"], weights: Float[Array, " k"]
) -> Float[Array, " b"]:
    """Returns the mean weight of each example's labels; 1 without any label."""
    total = jnp.sum(targets, axis=-1)
    weighted = jnp.sum(targets * weights[None], axis=-1)
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 1.0)


def _keyword_only(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [x.name for x in parameters if x.kind is x.KEYWORD_ONLY]


def _numbers(name: str, value: Any) -> bool:
    """Tells whether an option gives numbers, which follow from no counts."""
    return name != "logit_adjustment" and not isinstance(value, str)
