"""Exact evaluation of a classifier: each example counts once, at any batch size."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from vit_jax.data.sources.class_names import Relabelled
from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.confusion import ByClass, Confusion, share
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.labels import by_output
from vit_jax.evaluators.precision import MOST_SCORES, Scores, fits
from vit_jax.evaluators.prior import adjustment
from vit_jax.evaluators.protocol import Evaluator, Params, Subject, Watch
from vit_jax.evaluators.steps import Counted, make_eval_step
from vit_jax.models.outputs import INDEPENDENT, NUMBERS

logger = logging.getLogger(__name__)

# Metrics → 1 if larger is better, −1 if smaller is: of all data, of data with one
# label per image, and of data whose images may have several.
_ALWAYS = {"loss": -1.0, "top1": 1.0}
_ONE_LABEL = {"balanced_accuracy": 1.0, "macro_f1": 1.0}
_SEVERAL = {
    "mean_average_precision": 1.0,
    "macro_f1": 1.0,
    "micro_f1": 1.0,
    "exact_match": 1.0,
}


def metrics_of(
    num_classes: int, outputs: str, *, multi_label: bool
) -> dict[str, float]:
    """Lists the metrics of a classification: name → 1 if larger is better, else −1.

    Args:
      num_classes: number of the model's outputs.
      outputs: their meaning, a key of `MEANINGS`.
      multi_label: whether an image may have several labels.
    """
    if _yes_or_no(num_classes, outputs):
        return _ALWAYS | _SEVERAL
    return _ALWAYS | {"top5": 1.0} | (_SEVERAL if multi_label else _ONE_LABEL)


def what_to_count(
    num_classes: int,
    outputs: str,
    examples: int,
    *,
    multi_label: bool,
    per_class: bool = False,
    details: bool = False,
    wanted: Collection[str] = (),
    threshold: float = 0.5,
) -> Counted:
    """Returns what a step counts for the metrics of a classification.

    Args:
      num_classes: number of the model's outputs.
      outputs: their meaning, a key of `MEANINGS`.
      examples: number of examples.
      multi_label: whether an image may have several labels.
      per_class: see `Classification`.
      details: see `Classification`.
      wanted: metrics that have to be there; see `Subject`.
      threshold: see `Classification`.
    """
    several = multi_label or _yes_or_no(num_classes, outputs)
    return Counted(
        per_class=per_class,
        predictions=not several
        and (details or not _ONE_LABEL.keys().isdisjoint(wanted)),
        several=several,
        scores=several and fits(examples, num_classes),
        outputs=outputs,
        threshold=threshold,
    )


def _yes_or_no(num_classes: int, outputs: str) -> bool:
    return num_classes == 1 and outputs == INDEPENDENT


class Measured(NamedTuple):
    """The result of a classification.

    Attributes:
      numbers: metric → number; without those that the data leave undefined.
      by_class: "examples", "top1", "precision", "recall", "f1" and, for several labels,
        "average_precision" → an array [classes], NaN where it is undefined.
      confusion: counts of labels and predictions, for one label per image.
    """

    numbers: dict[str, Any]
    by_class: dict[str, np.ndarray]
    confusion: Confusion | None


class Classification(Evaluator):
    """Loss, top-1 and top-5 accuracy, and what else suits the labels.

    For images with several labels: mean average precision, F1 and exact match. With
    `details`, for images with one label: balanced accuracy and macro F1. With
    `per_class`, also each class's accuracy.

    `python -m vit_jax.evaluate` and every training run use this evaluator.
    """

    better: ClassVar = _ALWAYS | {"top5": 1.0} | _ONE_LABEL | _SEVERAL

    def __init__(
        self,
        subject: Subject,
        data: Data,
        loss: str = "softmax",
        per_class: bool = False,
        threshold: float = 0.5,
        classes: str = "names",
        details: bool = False,
        logit_adjustment: float = 0.0,
    ):
        """Makes the evaluator.

        Args:
          subject: the model.
          data: the examples.
          loss: a name in `LOSSES`.
          per_class: report each class's accuracy.
          threshold: a class is predicted if its probability is above, for several
            labels and for a single output.
          classes: how labels find their outputs: "names", "known" or "order"; see
            `labels.by_output`.
          details: count labels and predictions, for balanced accuracy and macro F1.
          logit_adjustment: τ; judge the outputs less τ · log π, where π are the shares
            of the classes in the data's `train_split` (arXiv:2007.07314).

        Raises:
          UserError: the data do not suit the model, an option is wrong, or the data do
            not give a metric that is wanted.
        """
        if not isinstance(threshold, int | float) or not 0 < threshold < 1:
            raise UserError(f"threshold={threshold!r}: expected a number from 0 to 1")
        self._examples = data.examples(
            subject, relabelled=lambda source: by_output(source, subject, classes)
        )
        source = self._examples.source
        self._classes = subject.architecture.num_classes
        self._names = subject.class_names
        self._per_class = per_class
        self._counted = what_to_count(
            *(self._classes, subject.outputs, len(self._examples)),
            multi_label=source.multi_label,
            per_class=per_class,
            details=details,
            wanted=subject.wanted,
            threshold=threshold,
        )
        self._check(subject)
        self._step: Any = make_eval_step(
            *(subject.model, subject.preprocessing, subject.mesh),
            loss=loss,
            counted=self._counted,
            shift=adjustment(logit_adjustment, subject, data, classes),
        )

    def _check(self, subject: Subject) -> None:
        """Rejects what does not go together; logs what is left out."""
        if subject.outputs == NUMBERS:
            raise UserError(
                "the model's outputs are plain numbers, so it predicts no class; use "
                "the evaluator 'regression'"
            )
        counted, classes = self._counted, self._classes
        given = metrics_of(classes, subject.outputs, multi_label=counted.several)
        if missing := sorted(subject.wanted - given.keys()):
            raise UserError(
                f"these data and outputs do not give {', '.join(missing)}; choose from "
                f"{', '.join(given)}"
            )
        if counted.several and not counted.scores:
            message = (
                f"mean average precision needs all {len(self._examples):,} × "
                f"{classes:,} scores, but at most {MOST_SCORES:,} are kept in memory"
            )
            if "mean_average_precision" in subject.wanted:
                raise UserError(f"{message}; evaluate on fewer images")
            logger.warning("%s: it is left out", message)

    @property
    def source(self) -> Source:
        """The examples, labelled by the model's outputs."""
        return self._examples.source

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; their numbers if nobody knows names."""
        names = self.source.class_names or self._names
        return tuple(names) or tuple(map(str, range(self._classes)))

    @property
    def outputs_shown(self) -> Sequence[int]:
        """The outputs that the data have as classes."""
        source = self.source
        return source.known if isinstance(source, Relabelled) else range(self._classes)

    def lower(self, params: Params) -> jax.stages.Lowered:
        """Lowers the step; it is not yet compiled."""
        return self._step.lower(params, self._examples.abstract_batch())

    def compile(self, params: Params) -> None:
        """Compiles the step."""
        self._step = self.lower(params).compile()

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Returns `loss`, `top1`, `examples` and so on, and "top1/CLASS"."""
        numbers, by_class, _ = self.measure(params, watch)
        if not self._per_class:
            return numbers
        columns = by_class["examples"], by_class["top1"]
        return numbers | {
            f"top1/{name}": float(top1)
            for name, count, top1 in zip(self.output_names, *columns, strict=False)
            if count
        }

    def measure(self, params: Params, watch: Watch = iter) -> Measured:
        """Evaluates all examples."""
        if self._counted.several:
            return self._measure_several(params, watch)
        confusion = Confusion(self._classes) if self._counted.predictions else None
        add = confusion and (
            lambda rows: confusion.add(rows["label"], rows["predicted"])
        )
        numbers = means(self._examples.sums(self._step, params, watch, add))
        by_class = _accuracies(numbers) if self._per_class else {}
        if confusion:
            counts = confusion.by_class()
            numbers["balanced_accuracy"] = counts.balanced_accuracy
            numbers["macro_f1"] = counts.macro_f1
            by_class = _columns(counts) | by_class
        return Measured(_defined(numbers), by_class, confusion)

    def _measure_several(self, params: Params, watch: Watch) -> Measured:
        scores = None
        if self._counted.scores:
            scores = Scores(len(self._examples), self._classes)

        def add(rows: Mapping[str, np.ndarray]) -> None:
            if scores is not None:
                counts = rows["counts"]
                scores.add(rows["scores"][counts], rows["positive"][counts])

        totals = self._examples.sums(self._step, params, watch, add)
        numbers, examples = means(totals), totals["class_examples"]
        counts = ByClass(examples, totals["class_predicted"], totals["class_hits"])
        by_class = _columns(counts) | _accuracies(numbers)
        if scores is not None:
            precisions = by_class["average_precision"] = scores.average_precisions()
            known = precisions[~np.isnan(precisions)]
            mean = float(known.mean()) if len(known) else float("nan")
            numbers["mean_average_precision"] = mean
        numbers |= {
            "macro_f1": counts.macro_f1,
            "micro_f1": counts.micro_f1,
            "exact_match": float(totals["exact"] / totals["examples"]),
            "classes_without_positives": int((examples == 0).sum()),
        }
        return Measured(_defined(numbers), by_class, None)


def means(totals: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the sums of `make_eval_step` over all batches into means.

    Returns:
      `loss` (mean), `top1` and `top5` in [0, 1], `examples` (evaluated) and
      `bad_images` (could not be read and do not count). If an image may have several
      labels, also `labelled`: the number of examples with a label, over which top-1
      and top-5 are means; without a label no prediction could be right. With a
      per-class step also `class_examples` and `class_right`, int64 [classes].
    """
    counted, bad = (int(totals.get(name, 0)) for name in ("examples", "bad_images"))
    several = "labelled" in totals
    # For a single output the prediction may be a no, which is right without a label.
    whole = int(totals["labelled"]) if several and "top5" in totals else counted
    wholes = {"loss": counted, "top1": whole, "top5": whole}
    result: dict[str, Any] = {
        name: float(totals[name] / whole) if whole else float("nan")
        for name, whole in wholes.items()
        if name in totals
    }
    result |= {"examples": counted, "bad_images": bad}
    if several and "top5" in totals:
        result["labelled"] = whole
    by_class = ("class_examples", "class_right")
    return result | {name: totals[name] for name in by_class if name in totals}


def _accuracies(numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Moves the counts by class out of the numbers, as the accuracy of each class."""
    examples, right = numbers.pop("class_examples"), numbers.pop("class_right")
    return {"examples": examples, "top1": share(right, examples)}


def _columns(counts: ByClass) -> dict[str, np.ndarray]:
    return {
        "examples": counts.examples,
        "top1": counts.recall,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
    }


def _defined(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what the labels leave undefined; the loss stays, whatever it is."""
    return {
        name: value
        for name, value in numbers.items()
        if name == "loss" or not np.isnan(value)
    }
