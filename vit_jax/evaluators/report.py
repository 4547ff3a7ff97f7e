"""Reports of a classification, as JSON values and as text for a terminal."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from vit_jax.evaluators.classification import Measured
from vit_jax.evaluators.confusion import Confusion

# Up to this many classes the confusion matrix is always reported.
FEW_CLASSES = 100
_MOST_CONFUSIONS = 5

# Metric → its name on a terminal, and how its value is written.
_LINES = {
    "top1": ("top-1", "{:8.2%}"),
    "top5": ("top-5", "{:8.2%}"),
    "balanced_accuracy": ("balanced accuracy", "{:8.2%}"),
    "mean_average_precision": ("mean average precision", "{:8.4f}"),
    "macro_f1": ("macro F1", "{:8.4f}"),
    "micro_f1": ("micro F1", "{:8.4f}"),
    "exact_match": ("exact match", "{:8.2%}"),
    "loss": ("loss", "{:8.4f}"),
}
_ONE_OUTPUT = {
    "top1": "accuracy",
    "mean_average_precision": "average precision",
    "micro_f1": "F1",
}
# With one output, the same as others.
_REPEATED = ("exact_match", "macro_f1")


def details(
    measured: Measured, names: Sequence[str], shown: Sequence[int], *, per_class: bool
) -> dict[str, Any]:
    """Returns the parts of a report that depend on classes, as JSON values.

    Args:
      measured: the result.
      names: names of the model's outputs.
      shown: the outputs that the data have as classes.
      per_class: include the numbers of each class, and the confusion matrix however
        many classes there are.
    """
    found: dict[str, Any] = {}
    if per_class:
        found["per_class"] = [
            {"class": names[k]}
            | {name: _value(column[k]) for name, column in measured.by_class.items()}
            for k in shown
        ]
    if not (matrix := measured.confusion):
        return found
    distinct, examples = _distinct(names), matrix.by_class().examples
    found["largest_confusions"] = [
        {
            "class": distinct[cell.label],
            "predicted": distinct[cell.predicted],
            "count": cell.count,
            "examples": int(examples[cell.label]),
        }
        for cell in matrix.largest(_MOST_CONFUSIONS)
    ]
    if per_class or len(names) <= FEW_CLASSES:
        found["confusion"] = _matrix(matrix, distinct)
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """Writes a report for a terminal, a line for each number.

    Args:
      report: the numbers of a classification, and what `details` returns.
    """
    # A single output that is a yes or no.
    one_output = "exact_match" in report and "labelled" not in report
    words = {name: word for name, (word, _) in _LINES.items()}
    words |= _ONE_OUTPUT if one_output else {}
    skipped = _REPEATED if one_output else ()
    chosen = [name for name in _LINES if name in report and name not in skipped]
    width = max((len(words[name]) for name in chosen), default=0)
    written = [
        f"  {words[name]:<{width}} {_LINES[name][1].format(report[name])}"
        for name in chosen
    ]
    for row in report.get("per_class", ()):
        accuracy = "       –" if row["top1"] is None else f"{row['top1']:8.2%}"
        written.append(
            f"  {accuracy} of {row['examples']:6d}  {row['class']}{_rates(row)}"
        )
    confusions = [
        "  {count:6d} of {examples:6d}  {class} → {predicted}".format(**cell)
        for cell in report.get("largest_confusions", ())
    ]
    if confusions:
        written.append("most frequent confusions (label → prediction):")
    return written + confusions


def _rates(row: dict[str, Any]) -> str:
    rates = [
        f"{name.replace('_', ' ')} {row[name]:.2%}"
        for name in ("precision", "recall", "average_precision")
        if row.get(name) is not None
    ]
    return f" ({', '.join(rates)})" if rates else ""


def _matrix(confusion: Confusion, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns label → prediction → count, by name and without zeros."""
    found: dict[str, dict[str, int]] = {}
    for label, predicted, count in confusion.cells():
        found.setdefault(names[label], {})[names[predicted]] = count
    return found


def _distinct(names: Sequence[str]) -> list[str]:
    """Adds the output's number to names that several outputs have."""
    counts = collections.Counter(names)
    return [
        f"{name} [{index}]" if counts[name] > 1 else name
        for index, name in enumerate(names)
    ]


def _value(number: Any) -> int | float | None:
    """Converts to a JSON value; what is undefined is null."""
    value = number.item()
    return None if isinstance(value, float) and math.isnan(value) else value
