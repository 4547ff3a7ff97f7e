"""Checks of a run's numbers and data, which decide when it has to stop."""

import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState

logger = logging.getLogger(__name__)

_ENOUGH_TO_JUDGE = 1000  # images; with fewer, the unreadable share means little
_MOST_IN_A_ROW = 20  # bad updates; after that many, the run will not recover

DIVERGED = (
    "A lower learning_rate, a longer warm-up or clipping (grad_clip_norm=1) usually "
    "helps; use another --workdir for that."
)


class Verdict(NamedTuple):
    """The consequences of a step's metrics."""

    left_out: bool = False  # the update was skipped
    stop: str = ""  # why the run has to stop; "" = it continues


class Guardrails:
    """A count of bad updates and unreadable images, with limits on both."""

    def __init__(
        self, setup: Setup, epoch: int, start: TrainState, skipped: int
    ) -> None:
        """Starts counting.

        Args:
          setup: the run.
          epoch: number of examples per epoch.
          start: the state that this process begins with.
          skipped: number of updates skipped before.
        """
        self._config, self._epoch = setup.config, epoch
        self._start = int(start.step), int(start.bad_images)
        self._skipped, self._skipped_in_a_row = skipped, 0
        self._seen = 0  # images since the start of this process
        self._bad_images = 0  # unreadable images among these
        self._bad_images_told = 0  # unreadable images reported so far

    def judge(self, step: int, values: dict[str, Any]) -> Verdict:
        """Judges the metrics of a step, and counts unreadable images.

        Args:
          step: the step's number, counted from 1.
          values: the step's metrics, on the host.
        """
        verdict = self._judge_update(step, values)
        batch_size = self._config.batch_size
        self._seen = (step - self._start[0]) * batch_size
        self._bad_images = int(values["bad_images"]) - self._start[1]
        if step * batch_size % self._epoch < batch_size:
            self._tell_bad_images(step)
        return verdict

    def _judge_update(self, step: int, values: dict[str, Any]) -> Verdict:
        config = self._config
        skipped = int(values.get("skipped_updates", 0))
        left_out, self._skipped = skipped > self._skipped, skipped
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * left_out
        if finite and not left_out:
            return Verdict()
        what = (
            f"step {step}: the loss is {values['loss']:g} and the gradient's norm "
            f"{values['grad_norm']:g}"
        )
        if finite:
            what += f", a spike (max_loss_spike={config.max_loss_spike:g})"
        if config.bad_update == "skip" and self._skipped_in_a_row < _MOST_IN_A_ROW:
            logger.warning("%s; the update is skipped, number %d", what, skipped)
            return Verdict(left_out=True)
        if config.bad_update == "skip":
            what += f": {_MOST_IN_A_ROW} bad updates in a row"
        return Verdict(left_out=True, stop=what)

    def _tell_bad_images(self, step: int) -> None:
        """Logs, at the end of an epoch, how many of its images could not be read."""
        new = self._bad_images - self._bad_images_told
        self._bad_images_told = self._bad_images
        if new:
            logger.warning(
                "epoch %d: %d images could not be read (%.2g %%); they are named above",
                step * self._config.batch_size // self._epoch,
                new,
                100 * new / self._epoch,
            )

    def check_data(self) -> None:
        """Raises if too many images were unreadable since this process started.

        Images before that do not count: once the data are repaired, the run must be
        able to continue.

        Raises:
          UserError: there are more than `max_bad_images` allows.
        """
        allowed = self._config.max_bad_images
        enough = self._seen >= min(self._epoch, _ENOUGH_TO_JUDGE)
        if self._bad_images > allowed * self._seen and enough:
            raise UserError(
                f"{self._bad_images:,} of {self._seen:,} training images could not be "
                f"read, but max_bad_images={allowed:g} allows only {allowed:.0%}. "
                "Check that the dataset was copied completely"
            )


@jax.jit
def all_finite(params: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(
        jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)])
    )
