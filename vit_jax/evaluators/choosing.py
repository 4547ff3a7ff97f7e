"""Makes evaluators from their rows in the config."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vit_jax.config.flexible import read_size
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.errors import Problems, UserError, problems_of
from vit_jax.evaluators.classification import Classification, metrics_of
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.neighbors import Neighbors
from vit_jax.evaluators.protocol import Evaluator, Subject
from vit_jax.evaluators.regression import Regression
from vit_jax.models.outputs import NUMBERS
from vit_jax.named import check_options, find_class
from vit_jax.words import did_you_mean

EVALUATORS: dict[str, type[Evaluator]] = {
    "classification": Classification,
    "regression": Regression,
    "knn": Neighbors,
}

# Keys of a row of `config.evaluators` that are not options of the evaluator's class.
_DATA_KEYS = {
    "dataset": str,
    "data_dir": str,
    "data": dict,
    "split": str,
    "train_split": str,
    "batch_size": int,
}
_EXPECTED = {
    str: "text",
    int: "a number of at least 1",
    dict: f"options by name, such as {', '.join(DataOptions.names())}",
}


class EvaluatorRow(NamedTuple):
    """One row of `config.evaluators`."""

    name: str  # its metrics are written as "name/metric"
    kind: str  # a name in `EVALUATORS`, or package.module:Name
    every: int  # steps between two evaluations; 0 = only at the end
    data: dict[str, Any]  # the `_DATA_KEYS` that differ from the run's
    options: dict[str, Any]
    patch_size: tuple[int, int] | None = None  # other than the run's; None = the same


def read_rows(evaluators: Mapping[str, Any]) -> list[EvaluatorRow]:
    """Reads and checks the rows of `config.evaluators`.

    Raises:
      UserError: lists every row that is incomplete, has a value of the wrong type, or
        names a class or an option that does not exist.
    """
    rows, problems = [], []
    for name, given in evaluators.items():
        row = dict(given) if isinstance(given, Mapping) else {}
        kind, every = row.pop("kind", ""), row.pop("every", 0)
        if not kind or type(every) is not int or every < 0 or "/" in name:
            problems.append(
                f"evaluators.{name}: found {given!r}; expected `kind`, one of "
                f"{', '.join(EVALUATORS)} or package.module:Name, and `every`, a "
                "number of steps (0 = only at the end)"
            )
            continue
        data = {key: row.pop(key) for key in _DATA_KEYS if key in row}
        size = None
        try:
            _check_data(name, data)
            made = evaluator_class(kind, f"evaluators.{name}")
            size = _patch_size(name, row, made)
            check_options(made, row, 2, f"evaluators.{name}")
        except UserError as error:
            problems += problems_of(error)
        rows.append(EvaluatorRow(name, kind, every, data, row, size))
    if problems:
        raise Problems(*problems)
    return rows


def judged_by(rows: Iterable[EvaluatorRow], num_classes: int) -> list[EvaluatorRow]:
    """Returns the rows whose evaluators can be made of data with so many classes.

    Without classes, there are no labels: then only evaluators that read none, and those
    that measure another data set.
    """
    return [
        row
        for row in rows
        if num_classes
        or row.data.get("dataset")
        or not evaluator_class(row.kind, f"evaluators.{row.name}").reads_labels
    ]


def _patch_size(
    name: str, row: dict[str, Any], made: type[Evaluator]
) -> tuple[int, int] | None:
    """Takes `patch_size` out of a row, unless it is an option of the row's class."""
    own = inspect.signature(made).parameters
    if "patch_size" not in row or "patch_size" in own:
        return None
    value = row.pop("patch_size")
    if (size := read_size(value)) is None:
        raise UserError(
            f"evaluators.{name}.patch_size={value!r}: expected a side in pixels or a "
            "pair (height, width)"
        )
    return size


def _check_data(name: str, data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if type(value) is not _DATA_KEYS[key] or (key == "batch_size" and value < 1):
            expected = _EXPECTED[_DATA_KEYS[key]]
            raise UserError(f"evaluators.{name}.{key}={value!r}: expected {expected}")
    for key in ("data_dir", "data"):
        if key in data and not data.get("dataset"):
            raise UserError(
                f"evaluators.{name}: `{key}` is given without `dataset`; give both or "
                "neither"
            )
    DEFAULT_OPTIONS.changed(data.get("data", {}), f"evaluators.{name}.data.")


def own_kind(outputs: str) -> str:
    """Returns the kind of evaluator that suits outputs of this meaning."""
    return "regression" if outputs == NUMBERS else "classification"


def directions(
    rows: list[EvaluatorRow], num_classes: int, outputs: str, *, multi_label: bool
) -> dict[str, float]:
    """Lists the metrics that can decide which checkpoint is best.

    Args:
      rows: the rows of `config.evaluators`.
      num_classes: number of the model's outputs; 0 = the run does not evaluate its own
        labels.
      outputs: their meaning, a key of `MEANINGS`.
      multi_label: whether an image of the run's own data may have several labels.

    Returns:
      Metric, named as in metrics.jsonl → 1.0 if larger is better, −1.0 if smaller is.
    """
    found = {}
    if num_classes and outputs == NUMBERS:
        found = dict(Regression.better)
    elif num_classes:
        found = metrics_of(num_classes, outputs, multi_label=multi_label)
    for row in rows:
        better = evaluator_class(row.kind, f"evaluators.{row.name}").better
        found |= {f"{row.name}/{metric}": sign for metric, sign in better.items()}
    return found


def check_metric(key: str, metric: str, better: Mapping[str, float]) -> None:
    """Raises UserError unless the metric that a config key names, if any, is known.

    Args:
      key: the key.
      metric: its value; "" = none.
      better: from `directions`.
    """
    if metric and metric not in better:
        raise UserError(
            f"{key}={metric!r}: choose from "
            f"{', '.join(better) or 'no metric: nothing is evaluated'}"
            + did_you_mean(metric, better)
        )


def evaluator_class(kind: str, name: str = "evaluator") -> type[Evaluator]:
    """Finds a class in `EVALUATORS`, or the user's own by `package.module:Name`.

    Raises:
      UserError: there is no such row, module or class, or the module fails to import.
    """
    return find_class(kind, EVALUATORS, Evaluator, name)


def make_evaluator(
    kind: str, subject: Subject, data: Data, options: Mapping[str, Any], name: str = ""
) -> Evaluator:
    """Makes an evaluator of the given kind.

    Raises:
      UserError: see `evaluator_class`; or the class does not take one of the options.
    """
    name = f"evaluators.{name}" if name else "evaluator"
    made: Any = evaluator_class(kind, name)
    check_options(made, options, 2, name)
    return made(subject, data, **options)
