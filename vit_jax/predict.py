"""Predicts the classes of image files with a trained model.

  python -m vit_jax.predict --checkpoint=MODEL IMAGE… [--top_k=5] [--json]

MODEL is a work directory, or anything else that vit_jax.load takes; nothing else is
needed. A folder stands for all the images in it. Prints the most probable classes of
each image, with their names. If the model answers yes or no for each class, these are
the probabilities of yes; if its outputs are plain numbers, all of them are printed.
"""

import json
import pathlib
from collections.abc import Sequence

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
flags.DEFINE_integer(
    "top_k", 5, "number of classes per image", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_bool(
    "raw", False, "use the last weights even if there are averaged ones", FLAGS
)
command.define_outputs(FLAGS)
flags.DEFINE_bool("json", False, "one JSON object on standard output", FLAGS)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if not FLAGS.checkpoint:
        raise UserError(
            "no model given; pass its work directory, as in --checkpoint=runs/b16"
        )
    if not arguments:
        raise UserError("no images given; pass image files, or folders of them")
    from vit_jax import api
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.models.outputs import is_probability

    use_compilation_cache()
    paths = expand(arguments)
    model = api.load(FLAGS.checkpoint, ema=not FLAGS.raw, outputs=FLAGS.outputs)
    predictions = model.predict(paths, FLAGS.top_k)
    are_probabilities = is_probability(model.outputs)
    if FLAGS.json:
        kind = "probability" if are_probabilities else "value"
        images = [
            {
                "image": str(path),
                "top": [{"class": name, kind: value} for name, value in top],
            }
            for path, top in zip(paths, predictions, strict=True)
        ]
        report = {
            "checkpoint": FLAGS.checkpoint,
            "step": model.step,
            "outputs": model.outputs,
            "predictions": images,
        }
        print(json.dumps(report, allow_nan=False))
        return
    for path, top in zip(paths, predictions, strict=True):
        print(path)
        for name, value in top:
            shown = f"{value:8.2%}" if are_probabilities else f"{value:12.6g}"
            print(f"  {shown}  {name}")


def expand(arguments: Sequence[str]) -> list[pathlib.Path]:
    """Replaces each folder by the images in it, at any depth, sorted; keeps files.

    Raises:
      UserError: names every path that does not exist, and every folder without images.
    """
    found: list[pathlib.Path] = []
    problems = []
    for argument in arguments:
        path = pathlib.Path(argument).expanduser()
        within = _images_within(path) if path.is_dir() else [path]
        if not path.exists():
            problems.append(f"{argument}: no such file or folder")
        elif not within:
            problems.append(f"{argument}: the folder contains no images")
        else:
            found += within
    if problems:
        raise UserError("\n".join(problems))
    return found


def _images_within(folder: pathlib.Path) -> list[pathlib.Path]:
    from vit_jax.data.formats import EXTENSIONS

    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


if __name__ == "__main__":
    command.run(main, FLAGS)
