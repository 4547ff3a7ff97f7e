"""Evaluates a trained model: every example counts exactly once.

  python -m vit_jax.evaluate --checkpoint=MODEL [--dataset=NAME|FOLDER] [--split=…]
      [--data=NAME=VALUE …] [--per_class] [--json]
      [--evaluator=KIND --option=NAME=VALUE …]

MODEL is a work directory, or anything else that vit_jax.load takes. By default, the
data are those in the work directory's config, and the examples those that were held out
of training. Classes are matched by name. Prints accuracy and loss with what else suits
the labels (docs/evaluation.md), or the numbers of another evaluator: KIND is a name in
vit_jax/evaluators/choosing.py, or your own class as package.module:Name.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError
from vit_jax.progress import Progress

_CLASSES_AFTER_ALL = (
    ". If the outputs are classes after all, say so: --outputs=exclusive or "
    "--outputs=independent"
)

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint",
    None,
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "dataset", None, "data other than the config's, with classes of the model", FLAGS
)
flags.DEFINE_string("split", None, "default: the evaluation split", FLAGS)
flags.DEFINE_string(
    "data_dir", None, "where tensorflow-datasets keeps its data sets", FLAGS
)
flags.DEFINE_multi_string(
    "data", [], "how the data are read, as in config.data: NAME=VALUE", FLAGS
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "default: the config's; rounded up to a multiple of the devices",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_bool("per_class", False, "also report the numbers of each class", FLAGS)
flags.DEFINE_bool("allow_bad_images", False, "skip images that cannot be read", FLAGS)
flags.DEFINE_bool(
    "raw", False, "use the last weights even if there are averaged ones", FLAGS
)
command.define_outputs(FLAGS)
command.define_base(FLAGS)
flags.DEFINE_string(
    "evaluator",
    None,
    "the evaluator, as in a recipe's `kind`; default: as the model's outputs mean",
    FLAGS,
)
flags.DEFINE_multi_string(
    "option", [], "an argument of the evaluator: NAME=VALUE", FLAGS
)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if arguments:
        raise UserError(f"unexpected arguments: {' '.join(arguments)}. See --help.")
    if not FLAGS.checkpoint:
        raise UserError(
            "no model given; pass its work directory, as in --checkpoint=runs/b16"
        )
    report = measure()
    if FLAGS.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print(report)


def measure() -> dict[str, Any]:
    """Evaluates the model that the flags name; returns the report of --json."""
    import jax

    from vit_jax import api, sharding
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.evaluators.examples import Data
    from vit_jax.evaluators.held_out import TrainedWith, part_to_evaluate
    from vit_jax.evaluators.protocol import Subject
    from vit_jax.host_memory import keep_freed_memory

    use_compilation_cache()
    keep_freed_memory()
    model = api.load(
        FLAGS.checkpoint, ema=not FLAGS.raw, outputs=FLAGS.outputs, base=FLAGS.base
    )
    config = model.config
    if not config["dataset"] and FLAGS.dataset is None:
        raise UserError(
            f"{FLAGS.checkpoint} was not trained here, so it names no data; pass "
            "--dataset=NAME|FOLDER with classes of the model"
        )
    part = part_to_evaluate(
        TrainedWith(config, model.examples, model.fingerprints),
        *(FLAGS.dataset, FLAGS.data_dir, FLAGS.data, FLAGS.split),
    )
    opened, dataset = part.dataset, part.dataset.location
    source = opened.split(part.split)
    if not len(source):
        raise UserError(f"{dataset} has no examples in split {part.split!r}")
    if not source.num_classes:
        raise UserError(
            f"the images of {dataset} have no labels to compare with; python -m "
            "vit_jax.predict says what the model finds in them"
        )
    mesh = _mesh(model)
    data = Data(
        lambda name: source if name == part.split else opened.split(name),
        part.split,
        part.train_split,
        FLAGS.batch_size or config["eval_batch_size"],
        "skip" if FLAGS.allow_bad_images else "error",
        opened.options.white_level,
        opened.common,
    )
    subject = Subject(
        *(model.module, model.preprocessing, mesh),
        class_names=model.class_names,
        outputs=model.outputs,
    )
    params = jax.device_put(model.params, sharding.shardings(model.params, mesh))
    numbers = _numbers(subject, data, params, f"{dataset}: ")
    wrong = {
        name: x
        for name, x in numbers.items()
        if isinstance(x, float) and not math.isfinite(x)
    }
    if wrong:
        raise UserError(
            f"{', '.join(f'{name} is {x}' for name, x in wrong.items())}: the "
            f"parameters of {FLAGS.checkpoint} at step {model.step} do not give finite "
            "numbers; evaluate another checkpoint"
        )
    return {
        "checkpoint": FLAGS.checkpoint,
        "step": model.step,
        "dataset": dataset,
        "split": part.split,
        # Of the model's own run: true, false, or null if that is not known.
        "trained_on": None if part.trained_on is None else part.trained_on > 0,
        "remark": part.remark,
    } | numbers


def _numbers(subject: Any, data: Any, params: Any, where: str) -> dict[str, Any]:
    """Makes, compiles and runs the evaluator; returns its part of the report."""
    from vit_jax.data.decode import DecodeError
    from vit_jax.evaluators.choosing import make_evaluator
    from vit_jax.evaluators.classification import Classification
    from vit_jax.models.outputs import MEANINGS, NUMBERS

    kind = FLAGS.evaluator
    if kind is None:
        kind = "regression" if subject.outputs == NUMBERS else "classification"
    options = _options(FLAGS.option)
    if kind == "classification":
        loss = MEANINGS[subject.outputs].loss
        options = {
            "loss": loss,
            "per_class": FLAGS.per_class,
            "details": True,
        } | options
    elif FLAGS.per_class:
        raise UserError(f"--per_class has no effect with --evaluator={kind}; omit it")
    try:
        evaluator = make_evaluator(kind, subject, data, options)
    except UserError as error:
        hint = _CLASSES_AFTER_ALL if subject.outputs == NUMBERS else ""
        error.args = (f"{where}{error}{hint}",)
        raise
    # An evaluator of another kind may read the examples several times.
    total = len(evaluator.source) if isinstance(evaluator, Classification) else None
    try:
        with Progress("evaluating", total) as progress:
            with progress.phase("compiling"):
                evaluator.compile(params)
            watch = _watch(progress)
            if not isinstance(evaluator, Classification):
                return evaluator(params, watch)
            return _classified(evaluator, evaluator.measure(params, watch))
    except DecodeError as error:
        raise UserError(
            f"{error}. Repair or remove that file, or pass --allow_bad_images to skip "
            "all images that cannot be read"
        ) from error


def _watch(progress: Progress) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Returns a function that counts the examples of the batches it passes on."""

    def watch(batches: Iterable[Any]) -> Iterator[Any]:
        for rows in batches:
            yield rows
            progress.advance(int((rows["index"] >= 0).sum()))

    return watch


def _classified(evaluator: Any, measured: Any) -> dict[str, Any]:
    """Returns the numbers of a classification, with those that depend on classes."""
    from vit_jax.evaluators.report import details

    return measured.numbers | details(
        measured,
        *(evaluator.output_names, evaluator.outputs_shown),
        per_class=FLAGS.per_class,
    )


def _options(texts: list[str]) -> dict[str, Any]:
    """Parses the evaluator's arguments as JSON values, or else as text."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option={text}: expected NAME=VALUE, as in shots=10")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _mesh(model: Any) -> Any:
    """Makes the recipe's mesh if the devices allow it; otherwise replicates weights.

    A model that needed its weights sharded in training may need that here too.
    """
    from vit_jax import sharding

    try:
        mesh = sharding.make_mesh(**model.config["mesh"])
    except UserError:
        return sharding.make_mesh()
    return sharding.make_mesh() if sharding.misfits(mesh, model.architecture) else mesh


def _print(report: dict[str, Any]) -> None:
    where = "{checkpoint}, step {step}, on {dataset} {split}:".format(**report)
    if FLAGS.evaluator in (None, "classification") and "loss" in report:
        from vit_jax.evaluators.report import lines

        print(f"{where} {_counted(report)}")
        print("\n".join(lines(report)))
    else:
        about = {"checkpoint", "step", "dataset", "split", "trained_on", "remark"}
        print(where)
        for name, value in report.items():
            if name not in about:
                print(f"  {name:<16} {value:.6g}")
    if report["remark"]:
        print(f"note: {report['remark']}")


def _counted(report: dict[str, Any]) -> str:
    """Writes the number of examples, and how many of them some numbers leave out."""
    parts = [f"{report['examples']} examples"]
    if (labelled := report.get("labelled", report["examples"])) < report["examples"]:
        parts.append(f"{labelled} with a label, to which top-1 and top-5 refer")
    if skipped := report["bad_images"]:
        parts.append(f"{skipped} more could not be read")
    if absent := report.get("classes_without_positives"):
        parts.append(
            f"{absent} classes without an image, which the mean average precision "
            "leaves out"
        )
    return ", ".join(parts)


if __name__ == "__main__":
    command.run(main, FLAGS)
