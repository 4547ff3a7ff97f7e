"""The output of a run: metrics, progress, evaluations, checkpoints."""

import dataclasses
import logging
import math
from typing import Any

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.errors import UserError
from vit_jax.evaluators.protocol import Watch
from vit_jax.train.early_stopping import Patience
from vit_jax.train.evaluation import Evaluations
from vit_jax.train.guardrails import DIVERGED, all_finite
from vit_jax.train.processes.cluster import as_the_first_says
from vit_jax.train.reporting.goodput import goodput, in_words
from vit_jax.train.reporting.metrics import MetricWriter, Progress, Stopwatch
from vit_jax.train.same_data import DataFacts
from vit_jax.train.saved_parts import saved_items
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState

logger = logging.getLogger(__name__)

EARLY_STOP = "early_stop"  # the split of the line of metrics that says why a run ended


@dataclasses.dataclass
class Recorder:
    """A writer of everything that a run records, in the right order.

    Attributes:
      facts: what identifies the data.
      base: record of the weights whose parameters checkpoints leave out; {} = none.
      images: number of images trained on since the clock's last lap.
    """

    setup: Setup
    facts: DataFacts
    evaluations: Evaluations
    checkpoints: Checkpoints
    writer: MetricWriter
    progress: Progress
    base: dict[str, str] = dataclasses.field(default_factory=dict)
    clock: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    images: int = 0

    def __post_init__(self) -> None:
        self.patience = Patience.of(self.setup.config, self.setup.better)
        for step, numbers in self.writer.of_split(self._judged):
            self.checkpoints.note(step, numbers)
            self.patience.note(step, numbers)

    def due(self, step: int, every: int) -> bool:
        """Whether a task that runs every `every` steps and at the end is due."""
        regular = every > 0 and step > 0 and step % every == 0
        return regular or step == self.setup.config.total_steps

    def write(self, step: int, values: dict[str, Any], *, always: bool) -> None:
        """Writes the metrics of a training step if they are due, or `always`."""
        self.images += self.setup.config.batch_size
        reports = self.due(step, self.setup.config.log_every)
        if always or reports:
            self.writer.write(step, "train", values)
        if reports:
            lap = self.clock.lap(self.images)
            self.images = 0
            self.progress.update(step, loss=float(values["loss"]), **lap)

    def evaluate(self, step: int, state: TrainState, watch: Watch) -> str:
        """Runs and writes the evaluations that are due, unless already recorded.

        Returns:
          A message if training has to stop because the loss is not finite; "" = it
          continues.

        Raises:
          UserError: an evaluator failed.
        """
        found: dict[str, dict[str, Any]] = {}
        problem = ""
        models = self.setup.evaluated(state)
        for split in models:
            if self.writer.recorded(step, split):
                continue
            with self.clock.stopped("evaluating"):
                numbers = self.evaluations.measure(step, models[split], watch)
            if not math.isfinite(numbers.get("loss", 0.0)):
                problem = (
                    f"step {step}: the loss on the held-out images is "
                    f"{numbers['loss']}; training stops."
                )
                break
            found[split] = numbers
        if not problem and self._exhausts(step, found.get(self._judged, {})):
            # Evaluators that run only at the end share the line with the others.
            for split in found:
                with self.clock.stopped("evaluating"):
                    rest = self.evaluations.measure_rest(step, models[split], watch)
                found[split] |= rest
        for split, numbers in found.items():
            self.writer.write(step, split, numbers)
            if split == self._judged:
                self.checkpoints.note(step, numbers)
                self.patience.note(step, numbers)
            logger.info("step %d%s: %s", step, _weights(split), _sentence(numbers))
        return problem

    def _exhausts(self, step: int, numbers: dict[str, Any]) -> bool:
        """Whether the run ends early after an evaluation, in all processes."""
        if not self.patience.evaluations:
            return False
        return as_the_first_says(self.patience.after(step, numbers).exhausted)

    def stops_early(self, step: int) -> bool:
        """Whether the evaluation of this step ends the run; if so, records why."""
        if not (self.writer.recorded(step, self._judged) and self._exhausts(step, {})):
            return False
        if step < self.setup.config.total_steps:
            if not self.writer.recorded(step, EARLY_STOP):
                self.writer.write(step, EARLY_STOP, self.patience.record())
            logger.info(
                "step %d: the run ends early: %s (patience=%d). To train on, pass "
                "--config.patience=0 or a larger number",
                step,
                self.patience,
                self.patience.evaluations,
            )
        return True

    @property
    def _judged(self) -> str:
        """The split whose metrics decide which checkpoint is the best."""
        return "eval_ema" if self.setup.config.ema_decay else "eval"

    def is_best(self, step: int) -> bool:
        """Whether this step was evaluated, and is better than all kept checkpoints."""
        evaluated = self.writer.recorded(step, self._judged)
        if not self.setup.config.keep_best or not evaluated:
            return False
        return step > 0 and as_the_first_says(self.checkpoints.is_best(step))

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving the state; see `Checkpoints.save`.

        The metrics of all earlier steps must have been written.

        Raises:
          UserError: parameters are not finite, or an earlier save failed.
        """
        if not all_finite(state.params):
            raise UserError(
                f"step {step}: parameters are no longer finite; training stops. "
                f"{self.last_good()} {DIVERGED}"
            )
        self.writer.flush()
        description = Description(
            self.setup.architecture,
            self.setup.preprocessing,
            self.facts.class_names,
            config_lib.to_plain(self.setup.config),
            step,
            self.facts.examples,
            self.facts.fingerprints,
            self.setup.objective.outputs(self.setup.config),
            self.setup.objective_facts,
            decoder=self.setup.objective.decoder_facts(),
            base=self.base,
        )
        with self.clock.stopped("saving"):
            self.checkpoints.save(step, saved_items(self.setup, state), description)

    def finish(self, step: int) -> None:
        """Waits for the last save, and logs where the time of this process went."""
        with self.clock.stopped("saving"):
            self.checkpoints.wait()
        shares = goodput(self.clock.spent())
        # Not in metrics.jsonl, which is the same in every run.
        self.writer.show(step, "time", shares)
        logger.info("goodput    %s", in_words(shares))
        metric, best = self.setup.config.keep_best, self.checkpoints.best_step()
        if best is not None:
            folder = self.checkpoints.folder(best)
            logger.info("best       step %d, by %s: %s", best, metric, folder)
        elif metric:
            logger.warning(
                "keep_best=%s: no checkpoint is the best, because the evaluations gave "
                "no such number",
                metric,
            )

    def last_good(self) -> str:
        """Waits for any save in progress, and names the last good checkpoint."""
        try:
            self.checkpoints.wait()
        except UserError as error:
            return str(error)
        step = self.checkpoints.latest_step()
        if step is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is from step {step}."


def _weights(split: str) -> str:
    if split == "eval_ema":
        return ", averaged weights"
    return "" if split == "eval" else f", {split.removeprefix('eval_')}"


def _sentence(numbers: dict[str, Any]) -> str:
    """Writes an evaluation's numbers in one line."""
    parts = []
    if "loss" in numbers:
        # Without any label there is no top-1; with one label, nothing but that.
        shares = {"top1": "top-1", "exact_match": "exact match"}
        parts = [
            f"{words} {100 * numbers[name]:.2f} %"
            for name, words in shares.items()
            if name in numbers
        ]
        if "mean_average_precision" in numbers:
            precision = numbers["mean_average_precision"]
            parts.insert(0, f"mean average precision {precision:.4f}")
        counted = f"of {numbers['examples']} held-out images"
        if numbers.get("labelled", numbers["examples"]) < numbers["examples"]:
            counted += f" (top-1: of {numbers['labelled']} with a label)"
        loss = f"loss {numbers['loss']:.4f}"
        parts = [f"{', '.join(parts)} {counted}".lstrip(), loss]
    elif "mean_absolute_error" in numbers:
        parts = [f"mean absolute error {numbers['mean_absolute_error']:.4g}"]
    # Numbers of other evaluators have a slash in their names.
    parts += [f"{name} {value:.4g}" for name, value in numbers.items() if "/" in name]
    return ", ".join(part for part in parts if not part.startswith("top1/"))
