"""Shows what a model attends to and what its layers hold, image by image.

  python -m vit_jax.inspect --checkpoint=MODEL [--checkpoint=OTHER] IMAGE_OR_FOLDER…
      [--out=DIR] [--maps=attention,rollout,…] [--target=CLASS] [--image_size=SIDE]
      [--most=50]

MODEL is a work directory, or anything else that vit_jax.load takes. With two models,
such as before and after fine-tuning, each image is shown in both. Writes
DIR/index.html, one page that opens without a network, with the first images, and for
every image DIR/NAME with its maps as pictures and all numbers in arrays.npz
(arrays-2.npz of the second model).

Maps of a class are of CLASS, a name or an index, or of the class that the model
predicts. For a model without classes they are of what sets the image apart from a blank
one. No map is an explanation.

Exit status: 0 = done, 1 = an error that the message explains, 3 = some images could not
be read: standard error names them, and all others are there.
"""

import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import command
from vit_jax.errors import Problems, UserError, problems_of
from vit_jax.words import did_you_mean

if TYPE_CHECKING:
    from vit_jax.model import Model

SOME_FAILED = 3  # exit status

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "checkpoint",
    [],
    "WORKDIR, WORKDIR/checkpoints/STEP, or another source of weights; twice to compare",
    flag_values=FLAGS,
)
flags.DEFINE_string("out", "inspect", "a new folder for the results", flag_values=FLAGS)
flags.DEFINE_string(
    "maps", "", "names of maps, joined by commas; default: all", flag_values=FLAGS
)
flags.DEFINE_string(
    "target", None, "the class of class-specific maps, by name or index", FLAGS
)
flags.DEFINE_integer(
    "image_size",
    None,
    "side of the square images that the model reads",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "most",
    50,
    "number of images on the page; files are written of all",
    lower_bound=1,
    flag_values=FLAGS,
)
command.define_average(FLAGS)
command.define_outputs(FLAGS)
command.define_base(FLAGS)
command.define_patch_size(FLAGS)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    from vit_jax.compilation_cache import use_compilation_cache
    from vit_jax.host_memory import keep_freed_memory
    from vit_jax.prediction.arguments import count

    out = pathlib.Path(FLAGS.out).expanduser()
    names, total = _checked(arguments, out, count)
    use_compilation_cache()
    keep_freed_memory()
    models = [_load(source) for source in FLAGS.checkpoint]
    if len({model.architecture.channels for model in models}) > 1:
        raise UserError(
            "the two models read images of different numbers of channels; compare "
            "models that read the same images"
        )
    targets = [_target(model) for model in models]
    failed = _look(models, targets, names, arguments, total, out)
    print(f"{out / 'index.html'}: {total - failed:,} images")
    if failed:
        print(f"{failed:,} of {total:,} images could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _look(
    models: "Sequence[Model]",
    targets: Sequence[int | None],
    names: Sequence[str],
    arguments: Sequence[str],
    total: int,
    out: pathlib.Path,
) -> int:
    """Writes everything; returns how many images could not be read."""
    from vit_jax.inspect.looks import add_image, add_summary, begin_page
    from vit_jax.progress import Progress

    labels = [""] if len(models) == 1 else list(FLAGS.checkpoint)
    page = begin_page(list(zip(labels, models, strict=True)))
    folders, failed, on_page = Folders(out), 0, 0
    found = [(label, []) for label in labels]
    with Progress("inspecting", total) as progress:
        for name, inputs in _inputs(models, arguments):
            progress.advance()
            if isinstance(inputs, UserError):
                logger.warning("%s", inputs)
                failed += 1
                continue
            looks = [
                _looked(*one, names)
                for one in zip(labels, models, inputs, targets, strict=True)
            ]
            folders.write(name, looks)
            for (_, of_model), look in zip(found, looks, strict=True):
                of_model.append(look.findings.without_maps())
            if on_page < FLAGS.most:
                add_image(page, name, looks)
                on_page += 1
    if total - failed > on_page:
        page.texts.append(
            f"The first {on_page:,} of {total - failed:,} images; the files of all are "
            "beside this page."
        )
    add_summary(page, found)
    folders.finish(page)
    return failed


def _looked(
    label: str, model: "Model", pixels: Any, target: int | None, names: Sequence[str]
) -> Any:
    """Looks at one image in one model."""
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.inspect.findings import look_at
    from vit_jax.inspect.looks import Looked

    image = model.preprocessing.normalize(jnp.asarray(pixels)[None])
    found = look_at(model, image, names, target)
    words = "what sets the image apart from a blank one"
    if found.lens is not None:
        index = int(np.argmax(found.lens[-1])) if target is None else target
        words = model.class_names[index] if model.class_names else f"class {index}"
    return Looked(label, model, pixels, found, words)


def _inputs(
    models: "Sequence[Model]", arguments: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Yields each image's name, and what each model reads of it or an error."""
    from vit_jax.prediction.inputs import inputs
    from vit_jax.prediction.stream import prepared

    def prepare(image: Any, name: str) -> Any:
        return [model.preprocessing.prepare(image, name) for model in models]

    listed = inputs(list(arguments), models[0].architecture.channels)
    for item in prepared(listed, prepare, 4):
        yield item.name, item.pixels if item.error is None else item.error


def _load(source: str) -> "Model":
    from vit_jax import api

    return api.load(
        source,
        image_size=FLAGS.image_size,
        patch_size=command.patch_size(FLAGS),
        ema=command.average(FLAGS),
        outputs=FLAGS.outputs,
        base=FLAGS.base,
    )


def _target(model: "Model") -> int | None:
    """Returns the index of --target in a model's classes; None without it.

    Raises:
      UserError: the model has no such class.
    """
    if FLAGS.target is None:
        return None
    names, classes = list(model.class_names), model.architecture.num_classes
    if FLAGS.target in names:
        return names.index(FLAGS.target)
    if FLAGS.target.isdecimal() and int(FLAGS.target) < classes:
        return int(FLAGS.target)
    if not classes:
        raise UserError(
            f"--target={FLAGS.target}: the model has no classes; leave it out"
        )
    raise UserError(
        f"--target={FLAGS.target}: the model has no such class; expected the name of "
        f"one, or an index from 0 to {classes - 1}{did_you_mean(FLAGS.target, names)}"
    )


def _checked(
    arguments: Sequence[str], out: pathlib.Path, count: Any
) -> tuple[list[str], int]:
    """Checks the command line; returns names of maps and the number of images.

    Raises:
      UserError: names everything that is wrong with it.
    """
    from vit_jax.inspect.maps import MAPS

    problems: list[str] = []
    if not FLAGS.checkpoint:
        problems.append(
            "no model given; pass its work directory, as in --checkpoint=runs/b16"
        )
    if len(FLAGS.checkpoint) > 2:
        problems.append(
            f"{len(FLAGS.checkpoint)} models given; pass one, or two to compare"
        )
    names = [name.strip() for name in FLAGS.maps.split(",") if name.strip()]
    for name in names:
        if name not in MAPS:
            hint = did_you_mean(name, list(MAPS))
            problems.append(
                f"--maps: no map {name!r}: choose from {', '.join(MAPS)}{hint}"
            )
    if not arguments:
        problems.append("no images given; pass image files, or folders of them")
    if os.path.lexists(out) and not os.path.isdir(out):
        problems.append(f"--out={out} is a file; pass a folder")
    elif os.path.lexists(out / "index.html"):
        problems.append(
            f"{out / 'index.html'} exists already; pass another --out, or remove it"
        )
    total = 0
    for read in (lambda: command.average(FLAGS), lambda: command.patch_size(FLAGS)):
        try:
            read()
        except UserError as error:
            problems += problems_of(error)
    try:
        total = count(arguments)
    except UserError as error:
        problems += problems_of(error)
    if problems:
        raise Problems(*problems)
    return names or list(MAPS), total


class Folders:
    """The results in a folder: one folder for each image, and the page at the end."""

    def __init__(self, out: pathlib.Path):
        """Makes the folder.

        Raises:
          UserError: it cannot be made.
        """
        from vit_jax.prediction.file_names import FileNames

        self._out, self._names = out, FileNames()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out={out} cannot be made: {error.strerror or error}; pass another "
                "folder"
            ) from error

    def write(self, image: str, looks: Sequence[Any]) -> None:
        """Writes the pictures and arrays of one image."""
        import numpy as np

        from vit_jax.files import atomic_write
        from vit_jax.inspect.looks import overlays, shown
        from vit_jax.pages.pictures import encoded

        folder = self._out / self._names(image)[0]
        folder.mkdir(exist_ok=True)
        for i, look in enumerate(looks):
            suffix = f"-{i + 1}" if i else ""
            pictures = {"image": shown(look.pixels), **overlays(look)}
            for name, array in pictures.items():
                with atomic_write(folder / f"{name}{suffix}.png", sync=False) as path:
                    path.write_bytes(encoded(array))
            arrays = folder / f"arrays{suffix}.npz"
            with atomic_write(arrays, sync=False) as path, path.open("wb") as file:
                np.savez_compressed(file, **look.findings.arrays())

    def finish(self, page: Any) -> None:
        """Writes the page."""
        from vit_jax.files import atomic_write

        with atomic_write(self._out / "index.html", sync=False) as path:
            path.write_text(page.html(), encoding="utf-8")


if __name__ == "__main__":
    command.run(main, FLAGS)
