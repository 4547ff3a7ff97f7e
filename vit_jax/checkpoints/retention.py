"""The policy that decides which checkpoints of a run are kept."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers


@dataclasses.dataclass
class Retention(checkpoint_managers.PreservationPolicy):
    """A policy that keeps the newest checkpoints, the best one by a metric, and others.

    A checkpoint's metric is the one measured by the evaluation at its step; among
    equals the oldest is the best. Orbax applies the policy when a save begins, and
    deletes when that save is complete.
    """

    newest: int  # number of newest checkpoints to keep
    metric: str = ""  # name of an evaluated metric; "" = none
    sign: float = 1.0  # 1 if greater is better, −1 if smaller is
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    always: Collection[int] = ()  # steps that are kept however old they are

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a step, whether or not that step is saved."""
        # Evaluations on different schedules have different metrics. A NaN would be
        # the best if it came first.
        score = self.sign * float(metrics.get(self.metric, math.nan))
        if not math.isnan(score):
            self.scores[step] = score

    def best(self, steps: Collection[int]) -> int | None:
        """Returns the best of these steps; None if none of them was measured."""
        measured = [step for step in sorted(steps) if step in self.scores]
        return max(measured, key=self.scores.__getitem__, default=None)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        """Tells Orbax which of these checkpoints, oldest first, to keep."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], self.best(steps), *self.always}
        return [step in kept for step in steps]
