"""Which checkpoints of a run stay."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers


@dataclasses.dataclass
class Retention(checkpoint_managers.PreservationPolicy):
    """The newest stay, and the best by a metric of the evaluation at its step.

    Of equally good ones the oldest is the best. Orbax asks when a save begins, and
    deletes when it is complete.
    """

    newest: int  # how many
    metric: str = ""  # name of a number that is measured; "" = none
    sign: float = 1.0  # 1 where greater is better, −1 where smaller is
    scores: dict[int, float] = dataclasses.field(default_factory=dict)

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes what was measured at a step, whether that is saved or not."""
        # Not every evaluation measures everything.
        if self.metric in metrics:
            self.scores[step] = self.sign * float(metrics[self.metric])

    def best(self, steps: Collection[int]) -> int | None:
        """The best of some steps; None if none of them was measured."""
        measured = [step for step in sorted(steps) if step in self.scores]
        return max(measured, key=self.scores.__getitem__, default=None)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        """Of Orbax's interface: which of these, oldest first, stay."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], self.best(steps)}
        return [step in kept for step in steps]
