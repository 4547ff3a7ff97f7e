"""The evaluations that a training run repeats, each on its schedule."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.options import DataOptions
from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.choosing import EvaluatorRow, make_evaluator, own_kind
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.patch_sizes import model_at, own_options
from vit_jax.evaluators.protocol import Evaluator, Params, Subject, Watch
from vit_jax.train.memory import is_out_of_memory
from vit_jax.train.out_of_memory import EVALUATION, out_of_memory_explained
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)


class Scheduled(NamedTuple):
    """An evaluator of a run, with its name and schedule."""

    name: str  # "" = the run's own evaluation of its labels
    every: int  # steps between two evaluations; 0 = only at the end
    evaluator: Evaluator


class Evaluations:
    """All evaluations of a run: of its own labels, and by `config.evaluators`.

    Evaluations that are due at a step share one line of metrics.jsonl. The run's own
    numbers have plain names there; those of other evaluators are named "name/metric".
    """

    def __init__(self, setup: Setup, eval_source: Source):
        """Compiles all evaluators, so that errors appear before the first step.

        Args:
          setup: the run.
          eval_source: the examples of its `eval_split`.

        Raises:
          UserError: an evaluator cannot be made or compiled; the message names it.
        """
        self._setup, config = setup, setup.config
        subject = Subject(
            *(setup.model, setup.preprocessing, setup.mesh),
            class_names=eval_source.class_names,
            outputs=setup.outputs,
        )
        own = _data(setup, lambda split: _split(setup, split, eval_source))
        self._scheduled: list[Scheduled] = []
        if setup.architecture.num_classes and (
            evaluator := _of_labels(subject, own, setup)
        ):
            self._scheduled.append(Scheduled("", config.eval_every, evaluator))
        rows = {row.name: row for row in setup.evaluators}
        for name in config.evaluators:
            if name in rows:
                continue
            logger.warning(
                "the evaluator %r is left out, because the images have no labels; its "
                "row can name labelled data as `dataset`",
                name,
            )
        for row in rows.values():
            with _named(row.name):
                judged = subject._replace(
                    wanted=_wanted(setup, row.name),
                    model=model_at(setup.model, row.patch_size, config.posemb_resize),
                )
                data = _own_data(setup, row, own)
                evaluator = make_evaluator(
                    row.kind, judged, data, row.options, row.name
                )
            self._scheduled.append(Scheduled(row.name, row.every, evaluator))
        params = setup.model_params(setup.abstract_state().params)
        for name, _, evaluator in self._scheduled:
            with self._explained(name):
                evaluator.compile(params)

    def due(self, step: int) -> list[Scheduled]:
        """Returns the evaluators that are due after `step` updates."""
        last = step == self._setup.config.total_steps
        return [
            row
            for row in self._scheduled
            if last or (row.every > 0 and step > 0 and step % row.every == 0)
        ]

    def measure(self, step: int, params: Params, watch: Watch) -> dict[str, Any]:
        """Runs the evaluators that are due; names numbers as in metrics.jsonl.

        Args:
          step: finished updates.
          params: the model's parameters, on the devices of the mesh.
          watch: wraps the batches; may end the evaluation by raising an exception.

        Raises:
          UserError: an evaluator failed; the message names it.
        """
        return self._run(self.due(step), params, watch)

    def measure_rest(self, step: int, params: Params, watch: Watch) -> dict[str, Any]:
        """Runs the evaluators that are not due, because the run ends at this step."""
        due = self.due(step)
        rest = [row for row in self._scheduled if row not in due]
        return self._run(rest, params, watch)

    def _run(
        self, rows: Iterable[Scheduled], params: Params, watch: Watch
    ) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for name, _, evaluator in rows:
            with self._explained(name):
                found = evaluator(params, watch)
            prefix = f"{name}/" if name else ""
            numbers |= {f"{prefix}{metric}": value for metric, value in found.items()}
        return numbers

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        if not name:
            with out_of_memory_explained(self._setup, EVALUATION):
                yield
            return
        with _named(name):
            try:
                yield
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    "out of memory; set a smaller `batch_size` in its row of "
                    "`evaluators`"
                ) from error


def _of_labels(subject: Subject, own: Data, setup: Setup) -> Evaluator | None:
    """Makes the evaluator of the run's own labels.

    Returns None, and says so, if the labels cannot judge the outputs and nothing waits
    for their numbers: then the run may have other evaluators.
    """
    kind = own_kind(setup.outputs)
    options = own_options(setup.config, kind)
    judged = subject._replace(wanted=_wanted(setup, ""))
    try:
        return make_evaluator(kind, judged, own, options)
    except UserError as error:
        if kind == "classification" or judged.wanted:
            raise
        logger.warning(
            "the run's labels are not evaluated (config.evaluators can measure "
            "something else): %s",
            error,
        )
        return None


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds the evaluator's name to any error inside."""
    try:
        yield
    except UserError as error:
        error.args = (f"the evaluator {name!r}: {error}",)
        raise
    except Exception as error:
        error.add_note(f"This happened in the evaluator {name!r}.")
        raise


def _wanted(setup: Setup, name: str) -> frozenset[str]:
    """Returns the metrics of one evaluator that decide something in the run."""
    prefix = f"{name}/" if name else ""
    return frozenset(
        metric.removeprefix(prefix)
        for metric in setup.wanted
        if (metric.startswith(prefix) if name else "/" not in metric)
    )


def _data(setup: Setup, open_split: Callable[[str], Source]) -> Data:
    config, info = setup.config, setup.info
    return Data(
        open_split,
        info.eval_split,
        info.train_split,
        config.eval_batch_size,
        config.eval_bad_images,
        common=setup.dataset.common,
    )


def _split(setup: Setup, split: str, eval_source: Source) -> Source:
    """Opens a split of the run's data; the evaluation split is already open."""
    if split == setup.info.eval_split:
        return eval_source
    return setup.dataset.split(split)


def _own_data(setup: Setup, row: EvaluatorRow, default: Data) -> Data:
    """Opens the data of a row of `config.evaluators`; the run's data by default."""
    data, given = default, dict(row.data)
    if dataset := given.pop("dataset", ""):
        # The run's rules also hold for its evaluators, whose numbers are compared.
        options = DataOptions(rules=setup.dataset.options.rules)
        opened = open_dataset(
            dataset,
            given.pop("data_dir", setup.config.data_dir),
            options.changed(given.pop("data", {}), f"evaluators.{row.name}.data."),
            to_train=False,
        )
        info = opened.info
        data = Data(
            opened.split,
            info.eval_split,
            info.train_split,
            default.batch_size,
            default.bad_images,
            opened.options.white_level,
            opened.common,
        )
    return data._replace(**given)
