"""Crops images to the box around what a model's last layer attends to most.

  python -m vit_jax.crop --checkpoint=MODEL IMAGE_OR_FOLDER… [--out=DIR]
      [--method=attention|tokencut|tokencut_centred] [--mass=0.6] [--padding=1]
      [--aspect=4:3] [--image_size=SIDE] [--data=white_level=VALUE] [--patch_size=SIDE]

MODEL is a work directory, or anything else that vit_jax.load takes, of a Vision
Transformer; it needs no labels and no training for this. A folder stands for all the
images in it. Prints a line of JSON for each image, with its box [left, top, right,
bottom] in pixels of the upright image; or writes the lines to DIR/boxes.jsonl, beside
DIR/crops and DIR/overlays, for any number of images in bounded memory.

"attention" keeps the largest 60 % of the attention of the token that the head reads,
and of that the part which contains the maximum. "tokencut" cuts the graph of similar
keys in two. The box has one patch of padding. It is not the outline of an object.

The whole image is resized, never cropped, to a rectangle of about its shape that has
about as many patches as the model was loaded for (SIDE × SIDE with --image_size);
positions are resized for it.

Exit status: 0 = done, 1 = an error that the message explains, 3 = some images have no
box: standard error says why, and all others have theirs.
"""

import contextlib
import itertools
import logging
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import command
from vit_jax.errors import Problems, UserError, problems_of

if TYPE_CHECKING:
    from vit_jax.inspect.cropping import Crop, Cropper

SOME_FAILED = 3  # exit status

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint",
    None,
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "method",
    "attention",
    ["attention", "tokencut", "tokencut_centred"],  # METHODS of inspect/cropping.py
    "what the box is drawn by: attention of the last layer; a cut between its keys "
    "(TokenCut); or the same after their mean has been subtracted, for models whose "
    "keys are all alike, such as DINOv2",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "mass",
    0.6,
    "share of the attention that is kept, between 0 and 1",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "padding", 1.0, "patches that the box is larger on each side", flag_values=FLAGS
)
flags.DEFINE_string(
    "aspect",
    None,
    "WIDTH:HEIGHT that the box is widened to, as far as the image reaches",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "image_size",
    None,
    "the model reads about as many patches as a square image of this side has; "
    "default: as many as it was loaded for",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "out", None, "a new folder for boxes.jsonl, crops and overlays", flag_values=FLAGS
)
command.define_average(FLAGS)
command.define_base(FLAGS)
command.define_patch_size(FLAGS)
flags.DEFINE_multi_string(
    "data",
    [],
    "white_level=VALUE: the value that is white in images of more than 8 bits whose "
    "file does not say it; default: as in training",
    flag_values=FLAGS,
)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.host_memory import keep_freed_memory

    out = None if FLAGS.out is None else pathlib.Path(FLAGS.out).expanduser()
    total = _checked(arguments, out)
    use_compilation_cache()
    keep_freed_memory()
    from vit_jax import api
    from vit_jax.inspect.crop_folder import CHANNELS
    from vit_jax.inspect.cropping import Cropper

    model = api.load(
        FLAGS.checkpoint,
        patch_size=command.patch_size(FLAGS),
        ema=command.average(FLAGS),
        base=FLAGS.base,
    )
    model.preprocessing = model.preprocessing.for_white(_white())
    channels = model.architecture.channels
    if out is not None and channels not in CHANNELS:
        raise UserError(
            f"--out={FLAGS.out}: the model reads images of {channels} channels, which "
            "no picture can show; without --out the boxes are printed"
        )
    cropper = Cropper(
        model,
        FLAGS.method,
        mass=FLAGS.mass,
        padding=FLAGS.padding,
        aspect=_aspect(),
        image_size=FLAGS.image_size,
    )
    failed = _crop(cropper, arguments, total, out)
    if failed:
        where = f"; {out / 'boxes.jsonl'} has the reasons" if out is not None else ""
        print(f"{failed:,} of {total:,} images have no box{where}", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _crop(
    cropper: "Cropper", arguments: Sequence[str], total: int, out: pathlib.Path | None
) -> int:
    """Writes or prints a record for each image; returns how many have no box."""
    from vit_jax.inspect.crop_folder import open_folder, to_line
    from vit_jax.progress import Progress

    failed = 0
    with contextlib.ExitStack() as stack:
        folder = None if out is None else stack.enter_context(open_folder(out))
        # On a terminal, the printed records show the progress.
        shown = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(Progress("cropping", total, shown=shown))
        crops = cropper.stream(arguments)
        with progress.phase("compiling"):
            first = next(crops, None)
        for crop in itertools.chain([first] if first else [], crops):
            record = _record(crop)
            if folder is None:
                print(to_line(record))
            elif crop.found is None or crop.pixels is None:
                folder.write(record)
            else:
                folder.add(record, crop.pixels, crop.found)
            progress.advance()
            if crop.error is not None:
                logger.warning("%s", crop.error)
                failed += 1
    return failed


def _record(crop: "Crop") -> dict[str, Any]:
    """Returns what a line says of an image."""
    from vit_jax.inspect.cropping import METHODS

    if crop.found is None or crop.pixels is None:
        return {"image": crop.name, "error": str(crop.error)}
    height, width = crop.pixels.shape[:2]
    return {
        "image": crop.name,
        "size": [width, height],
        "method": FLAGS.method,
        "box": list(crop.found.box),
        METHODS[FLAGS.method].score: round(crop.found.score, 6),
    }


def _checked(arguments: Sequence[str], out: pathlib.Path | None) -> int:
    """Checks the command line; returns the number of images.

    Raises:
      UserError: names everything that is wrong with it.
    """
    from vit_jax.inspect.boxes import check
    from vit_jax.inspect.crop_folder import problem_with
    from vit_jax.prediction.arguments import count

    problems: list[str] = []
    if not FLAGS.checkpoint:
        problems.append(
            "no model given; pass its work directory, as in --checkpoint=runs/b16"
        )
    if not arguments:
        problems.append("no images given; pass image files, or folders of them")
    if FLAGS["mass"].present and FLAGS.method != "attention":
        problems.append(
            f"--mass={FLAGS.mass}: --method={FLAGS.method} keeps no share of a mass; "
            "leave one of them out"
        )
    try:
        check(mass=FLAGS.mass, padding=FLAGS.padding)
    except UserError as error:
        problems += [f"--{problem}" for problem in problems_of(error)]
    if FLAGS.image_size is not None and FLAGS.image_size < 1:
        problems.append(f"--image_size={FLAGS.image_size}: expected a number of pixels")
    if out is not None:
        problems += [problem] if (problem := problem_with(out)) else []
    for read in (_aspect, _white, _average, _patch_size):
        try:
            read()
        except UserError as error:
            problems += problems_of(error)
    total = 0
    try:
        total = count(arguments)
    except UserError as error:
        problems += problems_of(error)
    if problems:
        raise Problems(*problems)
    return total


def _white() -> float:
    from vit_jax.prediction.arguments import white_level

    return white_level(FLAGS.data)


def _average() -> bool | float:
    return command.average(FLAGS)


def _patch_size() -> tuple[int, int] | None:
    return command.patch_size(FLAGS)


def _aspect() -> float | None:
    """Reads --aspect: width / height, or None."""
    if FLAGS.aspect is None:
        return None
    with contextlib.suppress(ValueError, ZeroDivisionError):
        width, height = map(float, FLAGS.aspect.split(":"))
        if 0 < (aspect := width / height) < math.inf:
            return aspect
    raise UserError(f"--aspect={FLAGS.aspect}: expected WIDTH:HEIGHT, such as 4:3")


if __name__ == "__main__":
    command.run(main, FLAGS)
