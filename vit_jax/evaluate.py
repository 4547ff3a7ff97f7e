"""Evaluates a trained model: every example counts exactly once.

  python -m vit_jax.evaluate --checkpoint=MODEL [--dataset=NAME|FOLDER] [--split=…]
      [--data=NAME=VALUE …] [--per_class] [--json]
      [--evaluator=KIND --option=NAME=VALUE …]

MODEL is a work directory, or anything else that vit_jax.load takes. By default, the
data are those in the work directory's config. Prints top-1 and top-5 accuracy and the
mean loss, or the numbers of another evaluator: KIND is a name in
vit_jax/evaluators/choosing.py, or your own class as package.module:Name.
"""

import json
import math
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError
from vit_jax.words import shortened

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint",
    None,
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "dataset", None, "data other than the config's, with the same classes", FLAGS
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
flags.DEFINE_bool("per_class", False, "also report each class's accuracy", FLAGS)
flags.DEFINE_bool("allow_bad_images", False, "skip images that cannot be read", FLAGS)
flags.DEFINE_bool(
    "raw", False, "use the last weights even if there are averaged ones", FLAGS
)
command.define_outputs(FLAGS)
flags.DEFINE_string(
    "evaluator", "classification", "the evaluator, as in a recipe's `kind`", FLAGS
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
    from vit_jax.data.decode import DecodeError
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
    from vit_jax.evaluators.choosing import make_evaluator
    from vit_jax.evaluators.classification import Classification
    from vit_jax.evaluators.examples import Data
    from vit_jax.evaluators.protocol import Subject
    from vit_jax.host_memory import keep_freed_memory

    use_compilation_cache()
    keep_freed_memory()
    model = api.load(FLAGS.checkpoint, ema=not FLAGS.raw, outputs=FLAGS.outputs)
    config = model.config
    if not config["dataset"] and FLAGS.dataset is None:
        raise UserError(
            f"{FLAGS.checkpoint} was not trained here, so it names no data; pass "
            "--dataset=NAME|FOLDER with the same classes"
        )
    name = config["dataset"] if FLAGS.dataset is None else FLAGS.dataset
    data_dir = config["data_dir"] if FLAGS.data_dir is None else FLAGS.data_dir
    dataset = open_dataset(name).location
    # The config's splits and options apply only to its own dataset.
    same = dataset == config["dataset"]
    options = DataOptions.from_config(config.get("data")) if same else DEFAULT_OPTIONS
    opened = open_dataset(name, data_dir, options.with_flags(FLAGS.data))
    split = FLAGS.split or (config["eval_split"] if same else "")
    if not split:
        split = opened.info.eval_split if same else opened.whole
    source = opened.split(split)
    if not len(source):
        raise UserError(f"{dataset} has no examples in split {split!r}")
    mesh = _mesh(model)
    subject = Subject(model.module, model.preprocessing, mesh, source.class_names)
    data = Data(
        lambda name: source if name == split else opened.split(name),
        split,
        (config["train_split"] if same else "") or opened.info.train_split,
        FLAGS.batch_size or config["eval_batch_size"],
        "skip" if FLAGS.allow_bad_images else "error",
        opened.options.white_level,
    )
    params = jax.device_put(model.params, sharding.shardings(model.params, mesh))
    report = {
        "checkpoint": FLAGS.checkpoint,
        "step": model.step,
        "dataset": dataset,
        "split": split,
    }
    options = _options(FLAGS.option)
    if FLAGS.per_class and FLAGS.evaluator != "classification":
        raise UserError(
            f"--per_class has no effect with --evaluator={FLAGS.evaluator}; omit it"
        )
    if FLAGS.evaluator == "classification":
        _check_classes(model, source, dataset)
        loss = _loss(model.outputs)
        options = {"loss": loss, "per_class": FLAGS.per_class} | options
    evaluator = make_evaluator(FLAGS.evaluator, subject, data, options)
    by_class = {}
    try:
        evaluator.compile(params)
        if isinstance(evaluator, Classification):
            numbers = evaluator.measure(params)
            by_class = _by_class(numbers, model)
        else:
            numbers = evaluator(params)
    except DecodeError as error:
        raise UserError(
            f"{error}. Repair or remove that file, or pass --allow_bad_images to skip "
            "all images that cannot be read"
        ) from error
    wrong = {name: x for name, x in numbers.items() if not math.isfinite(x)}
    if wrong:
        raise UserError(
            f"{', '.join(f'{name} is {x}' for name, x in wrong.items())}: the "
            f"parameters of {FLAGS.checkpoint} at step {model.step} do not give finite "
            "numbers; evaluate another checkpoint"
        )
    return report | numbers | by_class


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


def _by_class(numbers: dict[str, Any], model: Any) -> dict[str, Any]:
    """Moves the per-class numbers out of the numbers of a classification."""
    right = numbers.pop("class_right", ())
    counts = numbers.pop("class_examples", ())
    if not len(counts):
        return {}
    names = model.class_names or [str(i) for i in range(len(counts))]
    return {
        "per_class": [
            {
                "class": name,
                "examples": int(count),
                "top1": float(hits / count) if count else None,
            }
            for name, hits, count in zip(names, right, counts, strict=True)
        ]
    }


def _loss(outputs: str) -> str:
    """Returns the loss by which such outputs are judged; rejects plain numbers."""
    from vit_jax.models.outputs import MEANINGS

    if loss := MEANINGS[outputs].loss:
        return loss
    raise UserError(
        f"the outputs of {FLAGS.checkpoint} are plain numbers, so no class is right or "
        "wrong. If they are classes after all, pass --outputs=exclusive or "
        "--outputs=independent; otherwise --evaluator=package.module:Name"
    )


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


def _check_classes(model: Any, source: Any, dataset: str):
    """Rejects data whose labels differ from the classes of the head's outputs."""
    expected, found = model.class_names, tuple(source.class_names or ())
    classes = model.architecture.num_classes
    if source.num_classes == classes and (
        not expected or not found or expected == found
    ):
        return
    lines = [
        f"{dataset} has different classes from the model in {FLAGS.checkpoint}: "
        f"{source.num_classes} in the data, {classes} in the model."
    ]
    for what, names in (
        ("Only in the model", set(expected) - set(found)),
        ("Only in the data", set(found) - set(expected)),
    ):
        if names and expected and found:
            lines.append(f"{what}: {shortened(sorted(names))}.")
    if set(expected) == set(found):
        lines.append("The names agree, but their order differs.")
    lines.append("Pass data with the model's classes, or fine-tune the model on these.")
    raise UserError(" ".join(lines))


def _print(report: dict[str, Any]):
    if FLAGS.evaluator != "classification":
        about = {"checkpoint", "step", "dataset", "split"}
        print("{checkpoint}, step {step}, on {dataset} {split}:".format(**report))
        for name, value in report.items():
            if name not in about:
                print(f"  {name:<16} {value:.6g}")
        return
    skipped = report["bad_images"]
    note = f", {skipped} more could not be read" if skipped else ""
    print(
        f"{report['checkpoint']}, step {report['step']}, on {report['dataset']} "
        f"{report['split']}: {report['examples']} examples{note}"
    )
    print(f"  top-1 {report['top1']:8.2%}")
    print(f"  top-5 {report['top5']:8.2%}")
    print(f"  loss  {report['loss']:8.4f}")
    for row in report.get("per_class", ()):
        accuracy = "       –" if row["top1"] is None else f"{row['top1']:8.2%}"
        print(f"  {accuracy} of {row['examples']:6d}  {row['class']}")


if __name__ == "__main__":
    command.run(main, FLAGS)
