"""Prepares a tensorflow-datasets set as ArrayRecord, once; needs TensorFlow.

    pip install 'vit_jax[prepare]'
    python -m vit_jax.prepare NAME [--data_dir=DIR]

A set that is already there in another format is converted beside it. Training and
evaluation read the result without TensorFlow.
"""

from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.data import tfds_sets
from vit_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data_dir",
    "",
    "Where tensorflow-datasets keeps its sets; empty = its default.",
    flag_values=FLAGS,
)
FILE_FORMAT = "array_record"


def prepare(name: str, data_dir: str = "") -> str:
    """Makes the set `name` readable at random and returns the folder it lies in.

    Raises:
      UserError: TensorFlow is not installed, there is no such set, or it cannot be
        downloaded or written; with the reason and what to do.
    """
    if not tfds_sets.tensorflow_is_installed():
        raise UserError(
            f"preparing {name!r} needs TensorFlow, once (reading it does not):\n"
            "  pip install 'vit_jax[prepare]'\n  python "
            + " ".join(tfds_sets.prepare_command(name, data_dir))
        )
    builder = tfds_sets.find(name, data_dir)
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
            f"{type(error).__name__}: {error}\nIf the files must be downloaded by "
            "hand, put them where the message says and run this command again; "
            "extracted folders of images can be used directly as the dataset."
        ) from error
    return str(builder.data_dir)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(
            f"expected the name of one dataset, found {len(arguments)}: "
            "python -m vit_jax.prepare NAME [--data_dir=DIR]"
        )
    print(f"prepared {arguments[0]} in {prepare(arguments[0], FLAGS.data_dir)}")


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
    # Last, so that a set cut off half-way is not taken for a complete one.
    proto = dataset_info.read_proto_from_builder_dir(builder.data_dir)
    proto.alternative_file_formats.append(FILE_FORMAT)
    dataset_info.write_dataset_info_proto(proto, dataset_info_dir=builder.data_path)


if __name__ == "__main__":
    command.run(main, FLAGS)
