"""Preparation of data sets, once, as ArrayRecord files with fast random access.

    python -m vit_jax.prepare NAME|FOLDER|TABLE … [--data_dir=DIR] [--data=NAME=VALUE …]

A folder or table of images becomes DIR/<its name>/1.0.0. Every image is decoded once as
a check; its bytes are stored unchanged. Images that cannot be read are reported and
left out. Nothing but this package is needed.

A name is that of a tensorflow-datasets set, which is downloaded and prepared. That
needs TensorFlow (pip install 'vit_jax[prepare]'); reading the result does not. A set
that exists in another format, under its name or in the given folder, is converted; the
new files are stored beside the old ones.

A command that was stopped continues where it stopped. A set becomes visible only when
it is complete.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import command
from vit_jax.data.sources import tfds_sets
from vit_jax.errors import Problems, UserError, problems_of

if TYPE_CHECKING:
    from vit_jax.data.preparing.record_writer import Progress

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data_dir",
    "",
    "where tensorflow-datasets stores data sets; empty = its default",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "max_bad_share",
    0.01,
    "largest share of unreadable images in a folder or table; they are left out",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "data", [], "how the files are read, as in config.data: NAME=VALUE", FLAGS
)
FILE_FORMAT = "array_record"


def prepare(
    dataset: str,
    data_dir: str = "",
    max_bad_share: float = 0.01,
    data: Sequence[str] = (),
) -> str:
    """Prepares a data set for random access and returns its folder.

    Args:
      dataset: a name or folder of tensorflow-datasets; a folder of images; a table.
      data_dir: where tensorflow-datasets stores data sets; "" = its default.
      max_bad_share: largest share of unreadable images in a folder or table.
      data: how a folder or table is read: "NAME=VALUE" for each option.

    Raises:
      UserError: there is no such set; it cannot be read, downloaded or written; or
        TensorFlow is needed but not installed. The message says why and what to do.
    """
    from tensorflow_datasets.core import constants

    from vit_jax.data.preparing.record_writer import recorded_rules
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.data.sources.listings import ListedImages
    from vit_jax.data.sources.options import DEFAULT_OPTIONS

    options = DEFAULT_OPTIONS.with_flags(data)
    opened = open_dataset(dataset, data_dir, options)
    if opened.kind == "tensorflow-datasets":
        return _prepare_tfds(opened.location, data_dir)
    name, _ = os.path.splitext(os.path.basename(opened.location))
    folder = os.path.abspath(os.path.expanduser(data_dir or constants.DATA_DIR))
    # A set that was prepared before is compared by the rules that it was prepared by.
    rules = recorded_rules(name, folder) or options.rules
    opened = open_dataset(dataset, data_dir, options.changed({"rules": rules}))
    # Only sets with a training split are prepared.
    source = opened.contents.split(opened.info.train_split)
    if not isinstance(source, ListedImages):
        raise UserError(
            f"{dataset!r} ({opened.kind}) is held in memory and needs no preparing. "
            "Expected a name of tensorflow-datasets, a folder of images, or a table."
        )
    written = _prepare_images(source.listing, name, folder, max_bad_share, rules)
    if options.white_level:
        print(
            "files are copied as they are, so their white has to be said again: "
            f"--config.data.white_level={options.white_level:g}",
            file=sys.stderr,
        )
    return written


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if not arguments:
        raise UserError(
            "found no dataset, expected at least one: "
            "python -m vit_jax.prepare NAME|FOLDER|TABLE … [--data_dir=DIR]"
        )
    problems = []
    for dataset in arguments:
        try:
            folder = prepare(dataset, FLAGS.data_dir, FLAGS.max_bad_share, FLAGS.data)
            print(f"prepared {dataset} in {folder}", flush=True)
        except UserError as error:
            problems += problems_of(error)
    if problems:
        raise Problems(*problems)


def _prepare_images(
    listing, name: str, data_dir: str, max_bad_share: float, rules: int
) -> str:
    from vit_jax.data.preparing.record_writer import FROM_FILE, write_set

    with _progress() as progress:
        written = write_set(
            listing,
            name,
            data_dir,
            max_bad_share=max_bad_share,
            progress=progress,
            rules=rules,
        )
    for problem in written.left_out[:10]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(written.left_out) > 10:
        file = os.path.join(written.folder, FROM_FILE)
        print(
            f"left out: {len(written.left_out):,} in total, see {file}", file=sys.stderr
        )
    counts = ", ".join(f"{split} {n:,}" for split, n in written.num_examples.items())
    print(f"{counts}; to use it: --config.dataset={written.folder}", file=sys.stderr)
    return written.folder


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """Shows progress: a bar on a terminal, otherwise a line for each file."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:

        def line(at: "Progress") -> None:
            if at.shard:
                print(f"{at.done:,}/{at.total:,} images: {at.shard}", file=sys.stderr)

        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}")
    with Progress(*columns, text, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("images", total=None)

        def update(at: "Progress") -> None:
            bar.update(task, completed=at.done, total=at.total)
            if at.shard:
                bar.update(task, description=at.shard)

        yield update


def _prepare_tfds(name: str, data_dir: str) -> str:
    if not tfds_sets.tensorflow_is_installed():
        raise UserError(
            f"preparing {name!r} needs TensorFlow, once (reading it does not):\n"
            "  pip install 'vit_jax[prepare]'\n  python "
            + " ".join(tfds_sets.prepare_command(name, data_dir))
        )
    builder = tfds_sets.find_builder(name, data_dir)
    try:
        if not builder.is_prepared():
            builder.download_and_prepare(file_format=FILE_FORMAT)
        elif FILE_FORMAT not in {
            one.value for one in builder.info.available_file_formats()
        }:
            _convert(builder)
    except Exception as error:  # the network, the disk, a manual download …
        raise UserError(
            f"{name!r} could not be prepared in {builder.data_dir}: "
            f"{type(error).__name__}: {error}\nIf the files must be downloaded "
            "manually, put them where the message says and run this command again; "
            "extracted folders of images can be used directly as the dataset."
        ) from error
    return str(builder.data_dir)


def _convert(builder) -> None:
    # tensorflow-datasets' own converter imports apache_beam, which nothing else needs.
    from tensorflow_datasets.core import dataset_info, file_adapters

    adapters = file_adapters.ADAPTER_FOR_FORMAT
    found = adapters[builder.info.file_format]
    wanted = adapters[file_adapters.FileFormat(FILE_FORMAT)]
    for split in builder.info.splits.values():
        template = split.filename_template.replace(filetype_suffix=FILE_FORMAT)
        written = template.sharded_filepaths(split.num_shards)
        for source, destination in zip(split.filepaths, written, strict=True):
            records: Any = found.make_tf_data(source).as_numpy_iterator()
            partial = destination.with_name(f"incomplete.{destination.name}")
            wanted.write_examples(partial, enumerate(records))
            partial.replace(destination)
    # Last, so that an interrupted conversion is not taken for a complete one.
    proto = dataset_info.read_proto_from_builder_dir(builder.data_dir)
    proto.alternative_file_formats.append(FILE_FORMAT)
    dataset_info.write_dataset_info_proto(proto, dataset_info_dir=builder.data_path)


if __name__ == "__main__":
    command.run(main, FLAGS)
