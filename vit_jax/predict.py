"""Predicts the classes of image files with a trained model.

  python -m vit_jax.predict --checkpoint=MODEL IMAGE… [--top_k=5] [--json]
      [--out=FILE.jsonl|FILE.csv|FILE.parquet] [--batch_size=32]
      [--data=white_level=VALUE] [--patch_size=SIDE]

MODEL is a work directory, or anything else that vit_jax.load takes; nothing else is
needed. An image may be an https address. A folder stands for all the images in it,
links to other folders included. Prints the most probable classes of each image, with
their names, or writes them to FILE, any number in bounded memory. With --out the same
command continues after the images that FILE already has. If the model answers yes or
no for each class, the probabilities are those of yes; if its outputs are plain numbers,
all of them are given.

Exit status: 0 = done, 1 = an error that the message explains, 3 = some images could not
be read: standard error names them, and all others have their result.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.prediction.inputs import Input
    from vit_jax.prediction.records import Layout

SOME_FAILED = 3  # exit status

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint",
    None,
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "top_k", 5, "number of classes per image", lower_bound=1, flag_values=FLAGS
)
command.define_average(FLAGS)
command.define_outputs(FLAGS)
command.define_base(FLAGS)
command.define_patch_size(FLAGS)
flags.DEFINE_multi_string(
    "data",
    [],
    "white_level=VALUE: the value that is white in images of more than 8 bits whose "
    "file does not say it; default: as in training",
    flag_values=FLAGS,
)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)
flags.DEFINE_string(
    "out",
    None,
    "a file for the results: .jsonl (JSON lines), .csv or .parquet; if it exists, "
    "images that are missing in it are added",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch_size", 32, "images per forward pass", lower_bound=1, flag_values=FLAGS
)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if not FLAGS.checkpoint:
        raise UserError(
            "no model given; pass its work directory, as in --checkpoint=runs/b16"
        )
    if not arguments:
        raise UserError("no images given; pass image files, or folders of them")
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.host_memory import keep_freed_memory
    from vit_jax.prediction.arguments import count, white_level

    white, size = white_level(FLAGS.data), command.patch_size(FLAGS)
    total = count(arguments)
    out = None
    if FLAGS.out is not None:
        from vit_jax.prediction.saving import check_path

        out = pathlib.Path(FLAGS.out).expanduser()
        check_path(out)
    use_compilation_cache()
    keep_freed_memory()
    from vit_jax import api

    model = api.load(
        FLAGS.checkpoint,
        patch_size=size,
        ema=command.average(FLAGS),
        outputs=FLAGS.outputs,
        base=FLAGS.base,
    )
    model.preprocessing = model.preprocessing.for_white(white)
    failed = _predict(model, arguments, total, out)
    if out is not None and FLAGS.json:
        report = {"checkpoint": FLAGS.checkpoint, "step": model.step, "out": str(out)}
        report |= {"outputs": model.outputs, "images": total, "errors": failed}
        print(json.dumps(report, allow_nan=False))
    if failed:
        where = f"; {out} has the reasons" if out is not None else ""
        number = f"{len(failed):,} of {total:,} images"
        print(f"{number} could not be read{where}", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _predict(
    model: Any, arguments: Sequence[str], total: int, out: pathlib.Path | None
) -> list[dict[str, Any]]:
    """Predicts all images; returns the records of those that could not be read."""
    from vit_jax.prediction.inputs import inputs
    from vit_jax.prediction.printing import JsonObject, Printed
    from vit_jax.prediction.records import to_json
    from vit_jax.prediction.saving import open_results
    from vit_jax.progress import Progress

    layout = _layout(model)
    about = {"checkpoint": FLAGS.checkpoint, "step": model.step}
    about |= {"outputs": model.outputs}
    done: Any = None
    failed: list[dict[str, Any]] = []
    several = len(arguments) > 1  # may stand for the same image

    def listed() -> "Iterator[Input]":
        return inputs(arguments, model.architecture.channels)

    def images() -> "Iterator[Input]":
        yield from listed() if done is None else done.missing(listed(), several)

    # Refused before any file is made; the images are listed once they are needed.
    stream = model.stream(images(), FLAGS.top_k, batch_size=FLAGS.batch_size)
    with contextlib.ExitStack() as stack:
        if out is not None:
            about["fingerprint"] = _fingerprint(model)
            results = open_results(out, layout, about, _relative(arguments))
            writer, done = stack.enter_context(results)
            if done.count:
                total, before = done.compare(listed(), several)
                failed += [found._asdict() for found in before]
                logger.info("%s has %d results, %d are missing", out, done.count, total)
        else:
            kind = JsonObject(about) if FLAGS.json else Printed(layout)
            writer = stack.enter_context(kind)
        # On a terminal, the printed results show the progress.
        shown = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(Progress("predicting", total, shown=shown))
        with progress.phase("compiling"):
            first = next(stream, None)
        for prediction in itertools.chain([first] if first else [], stream):
            record = to_json(prediction, layout.value)
            writer.write(record)
            progress.advance()
            if prediction.error is not None:
                logger.warning("%s", prediction.error)
                failed.append(record)
    return failed


def _relative(arguments: Sequence[str]) -> bool:
    """Returns whether the names of some images depend on the current folder."""
    from vit_jax.prediction.inputs import is_address

    paths = [os.path.expanduser(text) for text in arguments if not is_address(text)]
    return not all(map(os.path.isabs, paths))


def _layout(model: Any) -> "Layout":
    from vit_jax.models.outputs import is_probability
    from vit_jax.prediction.records import Layout

    classes = model.architecture.num_classes
    if is_probability(model.outputs):
        return Layout(min(FLAGS.top_k, classes), "probability")
    return Layout(classes, "value")


def _fingerprint(model: Any) -> str:
    from vit_jax.prediction.fingerprint import fingerprint

    return fingerprint(
        model.params,
        architecture=model.architecture.to_dict(),
        preprocessing=model.preprocessing.to_dict(),
        class_names=model.class_names,
        outputs=model.outputs,
    )


if __name__ == "__main__":
    command.run(main, FLAGS)
