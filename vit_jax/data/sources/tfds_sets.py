"""tensorflow-datasets sets, read from ArrayRecord files without TensorFlow."""

import glob
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np

from vit_jax.data.decode import DecodeError
from vit_jax.data.hashing import digest
from vit_jax.data.sources import splits, tfds_labels
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.protocol import (
    DatasetInfo,
    Example,
    check_single_label,
    counted,
)
from vit_jax.data.sources.tfds_labels import WEIGHT_KEY, Labels
from vit_jax.errors import UserError
from vit_jax.words import did_you_mean, one_line, shortened

# Evaluation splits in order of preference; a set with one split is divided.
EVALUATION_SPLITS = ("validation", "val", "valid", "test")
# [NAMESPACE:]NAME[/CONFIG][:VERSION]
_NAME = re.compile(r"([\w-]+:)?\w+(/[\w.,=-]+)?(:[\w.*]+)?")

_LONG_TO_READ = 2**30  # bytes, which take some seconds
_STANDARD_ERROR = 2  # the file descriptor, as notebooks and tests replace sys.stderr


def open_set(
    location: str, data_dir: str, options: DataOptions = DEFAULT_OPTIONS
) -> "TfdsContents":
    """Opens a set by its folder or name; prepares it first if that is possible."""
    if os.path.isabs(location):
        builder = open_folder(prepared_folder(location) or location)
    else:
        builder = open_name(location, data_dir)
    return TfdsContents(builder, options)


class TfdsContents:
    """The description of a prepared set, and the names of its classes."""

    def __init__(self, builder, options: DataOptions = DEFAULT_OPTIONS):
        self._builder, self._labels = builder, tfds_labels.find_labels(builder)
        self._default_splits = _default_splits(builder, options.hold_out)
        self.remarks: tuple[str, ...] = ()
        if self.info.held_out:
            self.remarks = (
                f"there is no split for evaluation: {self._default_splits[1]}, the end "
                "of the only one, is held out for it "
                f"(data.hold_out={options.hold_out:g})",
            )

    @property
    def info(self) -> DatasetInfo:
        train_split, eval_split = self._default_splits
        return DatasetInfo(
            str(self._builder.info.full_name),
            len(self._labels.class_names),
            num_examples(self._builder),
            self._labels.class_names,
            train_split,
            eval_split,
            multi_label=self._labels.multi_label,
            held_out=eval_split not in self._builder.info.splits,
        )

    def split(self, expression: str) -> "TfdsSet":
        return TfdsSet(self._builder, self._labels, expression)


class TfdsSet:
    """One split of a prepared set; images stay encoded."""

    def __init__(self, builder, labels: Labels, split: str):
        import tensorflow_datasets as tfds

        every = dict(builder.info.features.items())
        self._builder, self._labels = builder, labels
        self._name = f"{builder.info.name}/{split}"
        self._image_key = _feature_key(builder, tfds.features.Image, "image")
        self.class_names = self._labels.class_names
        self.multi_label = self._labels.multi_label
        # Parsed first, so that a wrong split gets our message.
        self._parts = splits.Parts(split, num_examples(builder), builder.info.full_name)
        self._records = tfds_labels.raw_records(builder, split)
        # Other features of a record are not parsed, which saves time.
        keys = (self._image_key, self._labels.key, WEIGHT_KEY)
        self._features = tfds.features.FeaturesDict(
            {key: every[key] for key in keys if key in every}
        )
        self._decoders = {self._image_key: tfds.decode.SkipDecoding()}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        name = f"{self._name}[{index}]"
        try:
            record: Any = self._features.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
            label = self._labels.decode(record[self._labels.key])
            weight = float(record.get(WEIGHT_KEY, 1.0))
            return Example(record[self._image_key], label, name, weight)
        except MemoryError:
            raise
        except Exception as error:  # wrong checksum, truncated file, no such file …
            reason = str(error).strip() or type(error).__name__
            raise DecodeError(f"{name} cannot be read: {reason}") from error

    @property
    def labels_take_long(self) -> bool:
        """Whether the first call of `labels` has much to read."""
        splits_read = [self._builder.info.splits[name] for name in self._parts.names]
        return sum(split.num_bytes for split in splits_read) > _LONG_TO_READ

    def labels(self) -> np.ndarray:
        check_single_label(self, self._name)
        return self._column(tfds_labels.all_labels)

    def class_counts(self) -> np.ndarray:
        if not self.multi_label:
            return counted(self.labels(), self.num_classes)
        found = (
            tfds_labels.label_lists(self._builder, self._labels, name, selected)
            for name, selected in self._parts
        )
        return counted(np.concatenate([*found]), self.num_classes)

    def weights(self) -> np.ndarray:
        return self._column(tfds_labels.all_weights)

    def fingerprint(self) -> dict[str, str]:
        # Labels are in the records, which may take minutes to read.
        info = self._builder.info
        facts = [str(info.full_name)]
        for name, selected in self._parts:
            shards = info.splits[name].shard_lengths
            facts.append(f"{name} {shards} {selected.start} {selected.stop}")
        return {"name, version and shards": digest(*facts)}

    def _column(self, read) -> np.ndarray:
        names = self._parts.names
        return self._parts.gather(
            {name: read(self._builder, self._labels, name) for name in names}
        )


def num_examples(builder) -> dict[str, int]:
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def prepared_folder(path: str) -> str | None:
    """Returns the folder of a prepared set: `path`, or its only subfolder that is one.

    None if there is no such folder.

    Raises:
      UserError: several subfolders are prepared sets.
    """
    for depth in ("", "*"):
        pattern = os.path.join(glob.escape(path), depth, "dataset_info.json")
        found = sorted(os.path.dirname(file) for file in glob.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{path} holds {len(found)} prepared sets, expected one. Name one of "
                "them: " + shortened(found)
            )
        if found:
            return found[0]
    return None


def open_folder(path: str):
    """Returns the builder of the prepared set in the folder `path`.

    Raises:
      UserError: its description cannot be read, or its format has no random access.
    """
    builder = _described(path)
    # The path is DIR/name[/config]/version; the command that converts it takes DIR.
    name, levels = str(builder.info.name), str(builder.info.full_name).count("/")
    root = pathlib.Path(path).absolute().parents[levels]
    _check_format(builder, name, str(root))
    return builder


def _described(path: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(path)
    except Exception as error:  # of a dozen types, for files that are damaged
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"the description of the prepared set in {path} cannot be read: {reason}. "
            "Prepare it again."
        ) from error


def open_name(name: str, data_dir: str = ""):
    """Returns the builder of the set `name`; prepares it first if that is possible.

    Raises:
      UserError: tensorflow-datasets does not know the set; it is not prepared, and
        cannot be prepared here; or its format has no random access.
    """
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        _prepare(name, data_dir)
        builder = find_builder(name, data_dir)
    _check_format(builder, name, data_dir)
    return builder


def find_builder(name: str, data_dir: str = ""):
    """Finds the builder of a set, prepared or not.

    Args:
      name: name of the set, or the absolute path of a prepared one.
      data_dir: where data sets are stored; "" = tensorflow-datasets' default.

    Raises:
      UserError: there is no such set; suggests the nearest names.
    """
    import tensorflow_datasets as tfds

    if os.path.isabs(name):
        return _described(prepared_folder(name) or name)
    try:
        if not _NAME.fullmatch(name):
            raise tfds.core.DatasetNotFoundError(name)
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        end = did_you_mean(name.split("/")[0].split(":")[0], known, count=3) or "."
        raise UserError(
            f"there is no folder or file {os.path.abspath(name)}, and "
            f"tensorflow-datasets has no set {name!r}{end} Its sets are listed at "
            "https://www.tensorflow.org/datasets/catalog"
        ) from None
    except (ValueError, AssertionError, RuntimeError) as error:
        # An unknown configuration or version; the first lines list the known ones.
        raise UserError(
            f"the dataset {name!r} cannot be opened: {str(error)[:1000]}"
        ) from error


def tensorflow_is_installed() -> bool:
    """Returns whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def prepare_command(name: str, data_dir: str) -> list[str]:
    """Returns the arguments after `python` of the command that prepares a set."""
    return ["-m", "vit_jax.prepare", name] + (
        [f"--data_dir={data_dir}"] if data_dir else []
    )


def _default_splits(builder, share: float) -> tuple[str, str]:
    """Chooses the default splits for training and evaluation.

    The end of the only split is held out: sets are shuffled when they are prepared.
    """
    names = list(builder.info.splits)
    train = "train" if "train" in names else names[0]
    for name in EVALUATION_SPLITS:
        if name in names and name != train:
            return train, name
    kept = 100 * (1 - share)
    count = builder.info.splits[train].num_examples
    some = 0 < round(count * round(kept) / 100) < count
    if abs(kept - round(kept)) < 1e-6 and some:
        return f"{train}[:{round(kept)}%]", f"{train}[{round(kept)}%:]"
    first = min(max(round((1 - share) * count), 1), count - 1)
    return f"{train}[:{first}]", f"{train}[{first}:]"


def check_prepared(name: str, data_dir: str) -> None:
    """Raises UserError with the commands that prepare a set, unless it is prepared."""
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        shown = " ".join(["python", *prepare_command(name, data_dir)])
        raise UserError(
            f"the dataset {name!r} is not prepared: looked in {builder.data_dir}. "
            "Preparing it needs TensorFlow, once (reading it does not):\n"
            f"  pip install 'vit_jax[prepare]'\n  {shown}"
        )


def _prepare(name: str, data_dir: str) -> None:
    if not tensorflow_is_installed():
        check_prepared(name, data_dir)
    command = prepare_command(name, data_dir)
    shown = " ".join(["python", *command])
    print(f"{name} is not prepared yet; running: {shown}", file=sys.stderr)
    # A process of its own keeps TensorFlow away from JAX's devices. Its output goes to
    # standard error, because standard output is for results.
    finished = subprocess.run(
        [sys.executable, *command], stdout=_STANDARD_ERROR, check=False
    )
    if finished.returncode != 0:
        raise UserError(
            f"the dataset {name!r} could not be prepared (exit status "
            f"{finished.returncode}; the reason is printed above). To try again: "
            f"{shown}"
        )


def _check_format(builder, name: str, data_dir: str) -> None:
    found = {one.value for one in builder.info.available_file_formats()}
    if not found & {"array_record", "parquet"}:
        raise UserError(
            f"the dataset {name!r} in {builder.data_dir} is prepared as "
            f"{', '.join(sorted(found)) or 'nothing'}, which has no random access; "
            "expected array_record. To convert it (this needs TensorFlow, once):\n"
            f"  pip install 'vit_jax[prepare]'\n"
            f"  python {' '.join(prepare_command(name, data_dir))}"
        )


def _feature_key(builder, kind, preferred: str) -> str:
    found = [
        key
        for key, feature in builder.info.features.items()
        if isinstance(feature, kind)
    ]
    if preferred in found:
        return preferred
    if len(found) == 1:
        return found[0]
    raise tfds_labels.unsuitable(builder, f"one {preferred}")
