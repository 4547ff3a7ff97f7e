"""Evaluates a trained model: every example counts exactly once.

  python -m vit_jax.evaluate --checkpoint=MODEL [--dataset=NAME|FOLDER] [--split=…]
      [--per_class] [--json]

MODEL is a work directory, or anything else that vit_jax.load takes. Without --dataset
the data are those that a work directory's config names. Prints top-1 and top-5 accuracy
and the mean loss.
"""

import json
import math
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint",
    None,
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "dataset", None, "other data than the config's, of the same classes", FLAGS
)
flags.DEFINE_string("split", None, "default: the evaluation split", FLAGS)
flags.DEFINE_string("data_dir", None, "where tensorflow-datasets keeps its sets", FLAGS)
flags.DEFINE_integer(
    "batch_size",
    None,
    "default: the config's; rounded up to a multiple of the devices",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_bool("per_class", False, "also each class's accuracy", FLAGS)
flags.DEFINE_bool(
    "allow_bad_images", False, "leave out images that cannot be read", FLAGS
)
flags.DEFINE_bool(
    "raw", False, "the last weights, also where there are averaged ones", FLAGS
)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    if arguments:
        raise UserError(f"unexpected arguments: {' '.join(arguments)}. See --help.")
    if not FLAGS.checkpoint:
        raise UserError(
            "no model; pass its work directory, as in --checkpoint=runs/b16"
        )
    report = measure()
    if FLAGS.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print(report)


def measure() -> dict[str, Any]:
    """Evaluates what the flags name; the result is what --json prints."""
    import jax

    from vit_jax import api, sharding
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.data.decode import DecodeError
    from vit_jax.data.loading.batches import eval_batches
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.evaluators.classification import (
        evaluate,
        make_eval_step,
        padded_batch_size,
    )
    from vit_jax.host_memory import keep_freed_memory

    use_compilation_cache()
    keep_freed_memory()
    model = api.load(FLAGS.checkpoint, ema=not FLAGS.raw)
    config = model.config
    if not config["dataset"] and FLAGS.dataset is None:
        raise UserError(
            f"{FLAGS.checkpoint} was not trained here, so no data belong to it; pass "
            "--dataset=NAME|FOLDER, with the same classes"
        )
    opened = open_dataset(
        config["dataset"] if FLAGS.dataset is None else FLAGS.dataset,
        config["data_dir"] if FLAGS.data_dir is None else FLAGS.data_dir,
    )
    dataset = opened.location
    # The splits that the config names are those of its own dataset.
    same = dataset == config["dataset"]
    split = FLAGS.split or (config["eval_split"] if same else "")
    if not split:
        split = opened.info.eval_split if same else opened.whole
    source = opened.split(split)
    _check_classes(model, source, dataset)
    if not len(source):
        raise UserError(f"{dataset} has no examples in split {split!r}")

    mesh = _mesh(model)
    step = make_eval_step(
        model.module,
        model.preprocessing,
        mesh,
        loss=config["loss"],
        per_class=FLAGS.per_class,
    )
    batch_size = min(FLAGS.batch_size or config["eval_batch_size"], len(source))
    params = jax.device_put(model.params, sharding.shardings(model.params, mesh))
    with eval_batches(
        source,
        batch_size=padded_batch_size(batch_size, mesh),
        preprocessing=model.preprocessing,
        bad_images="skip" if FLAGS.allow_bad_images else "error",
    ) as batches:
        try:
            result = evaluate(step, params, batches, mesh, examples=len(source))
        except DecodeError as error:
            raise UserError(
                f"{error}. Mend or remove that file, or pass --allow_bad_images to "
                "leave out all that cannot be read"
            ) from error
    if not result["examples"]:
        raise UserError(f"none of the {len(source)} images of {dataset} can be read")
    if not math.isfinite(result["loss"]):
        raise UserError(
            f"the loss is {result['loss']}: the parameters of {FLAGS.checkpoint} at "
            f"step {model.step} give no finite numbers"
        )
    right, counts = result.pop("class_right", ()), result.pop("class_examples", ())
    report = {
        "checkpoint": FLAGS.checkpoint,
        "step": model.step,
        "dataset": dataset,
        "split": split,
        **result,
    }
    if FLAGS.per_class:
        names = model.class_names or [str(i) for i in range(len(counts))]
        report["per_class"] = [
            {
                "class": name,
                "examples": int(count),
                "top1": float(hits / count) if count else None,
            }
            for name, hits, count in zip(names, right, counts, strict=True)
        ]
    return report


def _mesh(model: Any) -> Any:
    """The recipe's mesh, where these devices form it; otherwise each has all weights.

    A model that needed its weights spread to be trained may need it here too.
    """
    from vit_jax import sharding

    try:
        mesh = sharding.make_mesh(**model.config["mesh"])
    except UserError:
        return sharding.make_mesh()
    return sharding.make_mesh() if sharding.misfits(mesh, model.architecture) else mesh


def _check_classes(model: Any, source: Any, dataset: str):
    """The head's outputs must mean what the labels do."""
    expected, found = model.class_names, tuple(source.class_names or ())
    classes = model.architecture.num_classes
    if source.num_classes == classes and (
        not expected or not found or expected == found
    ):
        return
    lines = [
        f"{dataset} has other classes than the model in {FLAGS.checkpoint}: "
        f"{source.num_classes} there, {classes} in the model."
    ]
    for what, names in (
        ("Only in the model", set(expected) - set(found)),
        ("Only in the data", set(found) - set(expected)),
    ):
        if names and expected and found:
            listed = ", ".join(sorted(names)[:10])
            lines.append(f"{what}: {listed}{', …' if len(names) > 10 else ''}.")
    if set(expected) == set(found):
        lines.append("The names agree, but their order does not.")
    lines.append("Pass data of the model's classes, or fine-tune the model on these.")
    raise UserError(" ".join(lines))


def _print(report: dict[str, Any]):
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
