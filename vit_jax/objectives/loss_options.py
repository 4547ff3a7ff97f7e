"""Reads and checks `config.loss_options`.

Besides the options of the loss itself, which are the keyword-only parameters of its row
of `LOSSES`, there are some that hold for several losses: `class_weights` with `beta`,
`logit_adjustment`, for yes-or-no questions `pos_weight`, and for a softmax `z_loss`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.config import Config
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.errors import UserError
from vit_jax.models.outputs import INDEPENDENT, of_loss
from vit_jax.named import is_number
from vit_jax.objectives import imbalance
from vit_jax.objectives.losses import LOSSES
from vit_jax.words import did_you_mean, shortened

_COMMON = ("class_weights", "beta", "logit_adjustment")
# Option → smallest and largest value, and their description.
_RANGES = {
    "gamma": (0.0, math.inf, "at least 0"),
    "gamma_neg": (0.0, math.inf, "at least 0"),
    "gamma_pos": (0.0, math.inf, "at least 0"),
    "clip": (0.0, 0.99, "from 0 to 0.99"),
    "alpha": (0.0, 1.0, "from 0 to 1, or -1 for none"),
    "beta": (0.0, 0.9999999, "from 0 to 0.9999999"),
    "logit_adjustment": (-math.inf, math.inf, "such as 1.0"),
    "z_loss": (0.0, math.inf, "at least 0, such as 1e-4"),
}


class LossOptions(NamedTuple):
    """The options of a loss, with what follows from the data.

    Attributes:
      own: options of the loss itself, by name.
      class_weights: a factor for each class [k]; None: all are 1.
      pos_weight: a factor for the term of each right class [k]; None: all are 1.
      shift: what is added to the logits [k]; None: nothing.
      z_loss: factor of the squared log-partition function of a softmax.
    """

    own: dict[str, Any]
    class_weights: np.ndarray | None
    pos_weight: np.ndarray | None
    shift: np.ndarray | None
    z_loss: float = 0.0


def read_loss_options(
    config: Config, info: DatasetInfo, class_counts: Callable[[], np.ndarray]
) -> LossOptions:
    """Reads `config.loss_options` for the classes of the data.

    Args:
      config: `loss`, `loss_options` and `sampling` are read.
      info: the classes of the data.
      class_counts: returns the number of training examples of each class, float64 [k];
        called only if an option needs it.

    Raises:
      UserError: lists all options that are unknown, have no effect or have a wrong
        value, and those that have none because a class has no training example.
    """
    reader = _Reader(config, info, functools.cache(class_counts))
    found = reader.read(config.loss_options.to_dict())
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    return found


class _Reader:
    """Reads the options of one run and collects their problems."""

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        class_counts: Callable[[], np.ndarray],
    ):
        self._loss, self._sampling = config.loss, config.sampling
        self._info, self._counts = info, class_counts
        self._independent = of_loss(config.loss) == INDEPENDENT
        names = info.class_names or map(str, range(info.num_classes))
        self._names = tuple(names)
        self.problems: list[str] = []

    def read(self, given: Mapping[str, Any]) -> LossOptions:
        names = [
            x.name
            for x in inspect.signature(LOSSES[self._loss]).parameters.values()
            if x.kind is x.KEYWORD_ONLY
        ]
        self._check_names(given, names)
        own = {
            name: self._flag(name, given[name])
            if name == "gradient_of_focus"
            else self._number(name, given[name])
            for name in names
            if name in given
        }
        return LossOptions(
            own,
            self._class_weights(given),
            self._pos_weight(given) if self._independent else None,
            self._shift(given),
            self._number("z_loss", given["z_loss"])
            if "z_loss" in given and not self._independent
            else 0.0,
        )

    def _check_names(self, given: Mapping[str, Any], own: list[str]) -> None:
        taken = [*own, *_COMMON, "pos_weight" if self._independent else "z_loss"]
        self.problems += [
            f"loss_options.{name}: the loss {self._loss!r} does not take it; it takes "
            f"{', '.join(taken)}{did_you_mean(name, taken)}"
            for name in sorted(given.keys() - set(taken))
        ]
        if "beta" in given and given.get("class_weights") != "effective":
            self._wrong("beta", given["beta"], "needs class_weights='effective'")

    def _wrong(self, name: str, value: Any, expected: str) -> None:
        self.problems.append(f"loss_options.{name}={value!r:.200}: {expected}")

    def _number(self, name: str, value: Any) -> float:
        low, high, expected = _RANGES[name]
        none = name == "alpha" and value == -1
        if is_number(value) and (none or low <= value <= high):
            return float(value)
        self._wrong(name, value, f"expected a number, {expected}")
        return 0.5

    def _flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self._wrong(name, value, "expected true or false")
        return bool(value)

    def _class_weights(self, given: Mapping[str, Any]) -> np.ndarray | None:
        name, value = "class_weights", given.get("class_weights", "")
        if isinstance(value, str):
            if not value:
                return None
            if value in imbalance.WEIGHTS:
                beta = self._number("beta", given.get("beta", 0.9999))
                counts = self._counted(name, value)
                if counts is None:
                    return None
                return imbalance.class_weights(value, counts, beta)
            choices = imbalance.WEIGHTS
            listed = f"choose from {', '.join(choices)}, or give numbers by class"
            self._wrong(name, value, listed + did_you_mean(value, choices))
            return None
        found = self._numbers(name, value)
        if found is not None and not found.any():
            self._wrong(name, value, "all are 0, so nothing would count")
        return found

    def _pos_weight(self, given: Mapping[str, Any]) -> np.ndarray | None:
        name, value = "pos_weight", given.get("pos_weight")
        if value is None:
            return None
        if value == "balanced":
            counts = self._counted(name, value)
            return None if counts is None else (self._examples - counts) / counts
        if is_number(value):
            value = [value] * self._info.num_classes
        return self._numbers(name, value)

    def _shift(self, given: Mapping[str, Any]) -> np.ndarray | None:
        name = "logit_adjustment"
        amount = self._number(name, given.get(name, 0.0))
        counts = self._counted(name, given[name]) if name in given and amount else None
        if counts is None:
            return None
        if not self._independent:
            return amount * imbalance.log_prior(counts)
        if (always := np.flatnonzero(counts >= self._examples)).size:
            named = shortened([self._names[i] for i in always], repr)
            why = f"every training example has {named}, which has no odds; leave it out"
            self._wrong(name, amount, why)
            return None
        return amount * imbalance.log_odds(counts, self._examples)

    def _counted(self, name: str, value: Any) -> np.ndarray | None:
        """Returns the number of training examples of each class, none of them 0."""
        if self._sampling == "balanced":
            why = (
                "sampling='balanced' already draws all classes equally often; keep one "
                "of the two"
            )
            self._wrong(name, value, why)
            return None
        counts = self._counts()
        if none := imbalance.classes_without(counts, self._names):
            instead = "leave it out" if name == "logit_adjustment" else "give numbers"
            self._wrong(name, value, f"{none}; {instead}, or train on other data")
            return None
        return counts

    def _numbers(self, name: str, value: Any) -> np.ndarray | None:
        """Reads numbers by class name (others are 1), or in the classes' order."""
        if isinstance(value, Mapping):
            if unknown := sorted(map(str, value.keys() - set(self._names))):
                why = f"no class {shortened(unknown, repr)}; there are "
                why += shortened(self._names) + did_you_mean(unknown[0], self._names)
                self._wrong(name, value, why)
                return None
            value = [value.get(each, 1.0) for each in self._names]
        count = self._info.num_classes
        try:
            found = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            found = np.full(0, np.nan)
        if found.shape == (count,) and (np.isfinite(found) & (found >= 0)).all():
            return found
        self._wrong(
            name,
            value,
            f"expected numbers of at least 0 for the {count} classes, by name or in "
            "their order",
        )
        return None

    @property
    def _examples(self) -> float:
        """The number of training examples."""
        if not self._info.multi_label:
            return float(self._counts().sum())
        return float(self._info.num_examples[self._info.train_split])
