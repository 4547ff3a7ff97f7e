"""What a run writes between its steps, and what makes it stop."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.data.decode import DecodeError
from vit_jax.errors import UserError
from vit_jax.train.evaluation import Evaluation
from vit_jax.train.processes.cluster import as_the_first_says
from vit_jax.train.processes.interrupts import Interrupts
from vit_jax.train.processes.watchdog import Watchdog
from vit_jax.train.reporting.goodput import goodput, in_words
from vit_jax.train.reporting.metrics import MetricWriter, Progress, Stopwatch
from vit_jax.train.reporting.profiling import Profile
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState, to_items

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Reports:
    """Everything a run writes: metrics, progress and checkpoints, in the right order.

    Attributes:
      unread: the last step whose metrics were not read yet. They are fetched while the
        next step is being computed.
    """

    setup: Setup
    class_names: tuple[str, ...]
    examples: dict[str, int]  # of each split
    evaluation: Evaluation
    checkpoints: Checkpoints
    writer: MetricWriter
    progress: Progress
    profile: Profile
    interrupts: Interrupts
    watchdog: Watchdog
    start: tuple[int, int]  # finished updates and unreadable images before this process
    skipped: int  # updates that were left out so far
    skipped_in_a_row: int = 0  # since the start of this process
    clock: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    images: int = 0  # since the clock's last lap
    unread: tuple[int, dict[str, jax.Array]] | None = None
    seen: int = 0  # images since the start of this process, in steps that were read
    bad_images: int = 0  # of these, unreadable
    bad_images_told: int = 0  # at the end of the last epoch

    def __post_init__(self) -> None:
        for step, numbers in self.writer.of_split(self._judged):
            self.checkpoints.note(step, numbers)

    def stepped(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics; meanwhile those of the step before are read."""
        self.checkpoints.check()
        with self.clock.stopped("tracing"):
            self.profile.stepped(step, metrics)
        self.read_metrics()
        self.unread = step, metrics

    @contextlib.contextmanager
    def fetching(self, step: int, state: TrainState) -> Iterator[None]:
        """Around the wait for a training batch."""
        self.watchdog.begin("a training step")
        with self.saving_if_data_fail(step, state, "bad_images"), self.clock.waiting():
            self._refuse_bad_data()
            yield

    def due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps, and at the end, is due."""
        regular = every > 0 and step > 0 and step % every == 0
        return regular or step == self.setup.config.total_steps

    def read_metrics(self) -> None:
        """Checks, and where due writes, the metrics of the last step not yet read."""
        if self.unread is None:
            return
        step, metrics = self.unread
        self.unread = None
        self.images += self.setup.config.batch_size
        values = jax.device_get(metrics)
        bad = self._is_bad(step, values)
        self.seen = (step - self.start[0]) * self.setup.config.batch_size
        self.bad_images = int(values["bad_images"]) - self.start[1]
        if step * self.setup.config.batch_size % self._epoch < (
            self.setup.config.batch_size
        ):
            self._tell_bad_images(step)
        if bad or self.due(step, self.setup.config.log_every):
            self.writer.write(step, "train", values)
        if self.due(step, self.setup.config.log_every):
            lap = self.clock.lap(self.images)
            self.images = 0
            self.progress.update(step, loss=float(values["loss"]), **lap)

    def _is_bad(self, step: int, values: dict[str, Any]) -> bool:
        """Whether the update was left out; raises if the run is to stop for that."""
        config = self.setup.config
        skipped = int(values.get("skipped_updates", 0))
        left_out, self.skipped = skipped > self.skipped, skipped
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * left_out
        if finite and not left_out:
            return False
        what = (
            f"step {step}: the loss is {values['loss']:g} and the gradient's norm "
            f"{values['grad_norm']:g}"
        )
        if finite:
            what += f", a spike (max_loss_spike={config.max_loss_spike:g})"
        if config.bad_update == "skip" and self.skipped_in_a_row < _MOST_IN_A_ROW:
            logger.warning("%s; the update is skipped, number %d", what, skipped)
            return True
        if config.bad_update == "skip":
            what += f", number {_MOST_IN_A_ROW} of bad updates in a row"
        self.writer.write(step, "train", values)
        raise UserError(f"{what}; training stops. {self._last_good()} {_DIVERGED}")

    @property
    def _epoch(self) -> int:
        """Examples of an epoch."""
        return self.examples[self.setup.info.train_split]

    def _tell_bad_images(self, step: int) -> None:
        """At the end of an epoch, of those that could not be read in it."""
        new = self.bad_images - self.bad_images_told
        self.bad_images_told = self.bad_images
        if new:
            epoch = step * self.setup.config.batch_size // self._epoch
            share = new / self._epoch
            logger.warning(
                "epoch %d: %d images could not be read (%.2g %%); they are named above",
                epoch,
                new,
                100 * share,
            )

    def _refuse_bad_data(self) -> None:
        """Raises if too many of the images were unreadable since this process started.

        Not since the run did: once the data are mended, it must be able to go on.
        """
        config = self.setup.config
        enough = self.seen >= min(self._epoch, _ENOUGH_TO_JUDGE)
        if self.bad_images > config.max_bad_images * self.seen and enough:
            raise UserError(
                f"{self.bad_images:,} of {self.seen:,} training images could not be "
                f"read, and max_bad_images={config.max_bad_images:g} allows "
                f"{config.max_bad_images:.0%}. Check that the dataset was copied "
                "completely"
            )

    def evaluate(self, step: int, state: TrainState) -> None:
        """Measures and writes the held-out accuracy, unless that was done before."""
        self.read_metrics()
        weights = {"eval": state.params}
        if self.setup.config.ema_decay:
            weights["eval_ema"] = state.ema
        for split, params in weights.items():
            if not self.writer.recorded(step, split):
                self._evaluate(step, state, split, params)

    def _evaluate(self, step: int, state: TrainState, split: str, params: Any) -> None:
        failing = self.saving_if_data_fail(step, state, "eval_bad_images")
        with self.clock.stopped("evaluating"), failing:
            numbers = self.evaluation(params, self._watched)
        self.watchdog.begin("")
        if not math.isfinite(numbers["loss"]):
            raise UserError(
                f"step {step}: the loss on the held-out images is {numbers['loss']}; "
                f"training stops. {self._last_good()} {_DIVERGED}"
            )
        self.writer.write(step, split, numbers)
        if split == self._judged:
            self.checkpoints.note(step, numbers)
        logger.info(
            "step %d%s: top-1 %.2f %% of %d held-out images, loss %.4f",
            step,
            ", averaged weights" * (split == "eval_ema"),
            100 * numbers["top1"],
            numbers["examples"],
            numbers["loss"],
        )

    @property
    def _judged(self) -> str:
        """The split that says which checkpoint is the best."""
        return "eval_ema" if self.setup.config.ema_decay else "eval"

    def is_best(self, step: int) -> bool:
        """Whether this step was evaluated, and is better than all that are kept."""
        evaluated = self.writer.recorded(step, self._judged)
        if not self.setup.config.keep_best or not evaluated:
            return False
        return step > 0 and as_the_first_says(self.checkpoints.is_best(step))

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        self.watchdog.begin("a batch of the evaluation")
        for batch in self.interrupts.watch(batches):
            yield batch
            self.watchdog.begin("a batch of the evaluation")

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving the state; see `Checkpoints.save`."""
        # Only what is known to be finite is saved, and only after everything that was
        # written about the steps before is on the disk.
        self.read_metrics()
        self.watchdog.begin("saving a checkpoint")
        if not _all_finite(state.params):
            raise UserError(
                f"step {step}: parameters are no longer finite; training stops. "
                f"{self._last_good()} {_DIVERGED}"
            )
        self.writer.flush()
        description = Description(
            self.setup.architecture,
            self.setup.preprocessing,
            self.class_names,
            config_lib.to_plain(self.setup.config),
            step,
            self.examples,
        )
        with self.clock.stopped("saving"):
            self.checkpoints.save(step, to_items(state), description)
        self.watchdog.begin("")

    def finish(self, step: int) -> None:
        """Waits for the last save, and says where the time of this process went."""
        with self.clock.stopped("saving"):
            self.checkpoints.wait()
        shares = goodput(self.clock.spent())
        # Not among the metrics, which are the same in every run.
        self.writer.show(step, "time", shares)
        logger.info("goodput    %s", in_words(shares))
        best = self.checkpoints.best_step()
        if best is not None:
            logger.info("best       step %d, by %s", best, self.setup.config.keep_best)

    @contextlib.contextmanager
    def saving_if_data_fail(
        self, step: int, state: TrainState, policy: str
    ) -> Iterator[None]:
        """What cannot be read costs no step: once mended, the run goes on from here."""
        try:
            yield
        except UserError as error:
            lines = [str(error)]
            if step > 0:
                self.save(step, state)
                self.checkpoints.wait()
                lines.append(
                    f"Stopped at step {step}, which is saved: once that is mended, the "
                    "same command goes on from there."
                )
            if isinstance(error, DecodeError):
                lines.append(
                    f"With --config.{policy}=skip, in another --workdir, a run leaves "
                    "out such images."
                )
            raise UserError("\n".join(lines)) from error

    def _last_good(self) -> str:
        try:
            self.checkpoints.wait()
        except UserError as error:
            return str(error)
        step = self.checkpoints.latest_step()
        if step is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is that of step {step}."


_ENOUGH_TO_JUDGE = 1000  # images: of fewer, a share says little
_MOST_IN_A_ROW = 20  # bad updates: with more it will not get better

_DIVERGED = (
    "A lower learning_rate, a longer warm-up or clipping (grad_clip_norm=1) in another "
    "--workdir usually helps."
)


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jnp.all(
        jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)])
    )
