"""Judges a run's numbers and data, and says when it has to stop."""

import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState

logger = logging.getLogger(__name__)

_ENOUGH_TO_JUDGE = 1000  # images: of fewer, a share says little
_MOST_IN_A_ROW = 20  # bad updates: with more it will not get better

DIVERGED = (
    "A lower learning_rate, a longer warm-up or clipping (grad_clip_norm=1) in another "
    "--workdir usually helps."
)


class Verdict(NamedTuple):
    """What follows from the metrics of a step."""

    left_out: bool = False  # its update was skipped
    stop: str = ""  # why the run has to stop; "" = it continues


class Guardrails:
    """Keeps account of bad updates and unreadable images."""

    def __init__(
        self, setup: Setup, epoch: int, start: TrainState, skipped: int
    ) -> None:
        """Starts counting.

        Args:
          setup: the run.
          epoch: examples of an epoch.
          start: the state that this process begins with.
          skipped: updates that were left out before.
        """
        self._config, self._epoch = setup.config, epoch
        self._start = int(start.step), int(start.bad_images)
        self._skipped, self._skipped_in_a_row = skipped, 0
        self._seen = 0  # images since the start of this process
        self._bad_images = 0  # unreadable ones among these
        self._bad_images_told = 0  # at the end of the last epoch

    def judge(self, step: int, values: dict[str, Any]) -> Verdict:
        """Judges the metrics of a step, and counts unreadable images.

        Args:
          step: its number, counted from 1.
          values: its metrics, on the host.
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
            what += f", number {_MOST_IN_A_ROW} of bad updates in a row"
        return Verdict(left_out=True, stop=what)

    def _tell_bad_images(self, step: int) -> None:
        """Says at the end of an epoch how many images could not be read in it."""
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

        Not since the run did: once the data are mended, it must be able to continue.

        Raises:
          UserError: more than `max_bad_images` allows.
        """
        allowed = self._config.max_bad_images
        enough = self._seen >= min(self._epoch, _ENOUGH_TO_JUDGE)
        if self._bad_images > allowed * self._seen and enough:
            raise UserError(
                f"{self._bad_images:,} of {self._seen:,} training images could not be "
                f"read, and max_bad_images={allowed:g} allows {allowed:.0%}. Check "
                "that the dataset was copied completely"
            )


@jax.jit
def all_finite(params: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(
        jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)])
    )
