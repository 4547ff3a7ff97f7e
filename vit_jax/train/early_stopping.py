"""Early stopping: a run ends when a metric has not improved for some evaluations."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.evaluators.choosing import EvaluatorRow, check_metric


@dataclasses.dataclass
class Patience:
    """A count of evaluations since the best one.

    It follows from the recorded evaluations alone, so a run that resumes stops where an
    undisturbed one would have stopped, and one that has stopped does not train on.

    Attributes:
      evaluations: number in a row without improvement after which to stop; 0 = never.
      metric: name of the metric; evaluations without it do not count.
      sign: 1 if greater values are better, −1 if smaller ones are.
      min_delta: a better value exceeds the best one by more than this.
      best_step, best: the best evaluation and its value, as measured; None before the
        first.
      waited: evaluations since the best one.
    """

    evaluations: int
    metric: str = ""
    sign: float = 1.0
    min_delta: float = 0.0
    best_step: int | None = None
    best: float | None = None
    waited: int = 0

    @classmethod
    def of(cls, config: Config, better: Mapping[str, float]) -> "Patience":
        """Makes the count of a run, given the direction of each metric."""
        metric = config.patience_metric or config.keep_best
        sign = better.get(metric, 1.0)
        return cls(config.patience, metric, sign, config.patience_min_delta)

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Counts the evaluation of a step, if it measured the metric."""
        if not self.evaluations or self.metric not in metrics:
            return
        value = float(metrics[self.metric])
        gain = math.inf if self.best is None else self.sign * (value - self.best)
        # A value that is not a number is never better.
        if gain > self.min_delta and not math.isnan(value):
            self.best_step, self.best, self.waited = step, value, 0
        else:
            self.waited += 1

    def after(self, step: int, metrics: Mapping[str, Any]) -> "Patience":
        """Returns the count with one more evaluation; this one is unchanged."""
        other = dataclasses.replace(self)
        other.note(step, metrics)
        return other

    @property
    def exhausted(self) -> bool:
        """Whether training should stop."""
        return 0 < self.evaluations <= self.waited

    def record(self) -> dict[str, float]:
        """Returns the numbers of a line of metrics.jsonl that says why a run ended."""
        if self.best is None or self.best_step is None:
            return {"patience": self.evaluations}
        return {
            "patience": self.evaluations,
            "best_step": self.best_step,
            f"best_{self.metric}": self.best,
        }

    def __str__(self) -> str:
        if self.best is None or self.best_step is None:
            return f"{self.metric} was not a number in {self.waited} evaluations"
        return (
            f"the best {self.metric}, {self.best:.4g}, was measured at step "
            f"{self.best_step:,}, {self.waited} evaluations ago"
        )


def check_patience(
    config: Config, better: Mapping[str, float], evaluators: Sequence[EvaluatorRow]
) -> None:
    """Raises UserError if the run cannot measure the metric that it waits for."""
    metric = config.patience_metric or config.keep_best
    if not config.patience or not metric:
        return
    if metric != config.keep_best:  # which is checked anyway
        check_metric("patience_metric", metric, better)
    name = metric.rpartition("/")[0]
    every = {row.name: row.every for row in evaluators} | {"": config.eval_every}
    if metric in better and not every[name]:
        key = f"evaluators.{name}.every" if name else "eval_every"
        raise UserError(
            f"patience={config.patience} has no effect: with {key}=0, {metric} is "
            f"measured only at the end; set --config.{key} to a number of steps"
        )
