"""Opens a data set of any kind, once; published sets are known without their data."""

import dataclasses
import functools
import os

from vit_jax.data.sources import arrays, digits, folders, tables, tfds_sets
from vit_jax.data.sources.protocol import Contents, DatasetInfo, Kind, Source
from vit_jax.errors import UserError

# The only list of them; `_recognised` is the only place that tells them apart.
KINDS: dict[str, Kind] = {
    "digits": lambda location, data_dir: digits.DigitsContents(),
    "image folder": lambda location, data_dir: folders.list_folder(location),
    "table": lambda location, data_dir: tables.read_tables(location),
    "arrays": lambda location, data_dir: arrays.ArrayContents(location),
    "tensorflow-datasets": tfds_sets.open_set,
}
_EXTENSIONS = {"table": tables.EXTENSIONS, "arrays": arrays.EXTENSIONS}


def _preset(name, num_classes, train_split, eval_split, num_examples, **more):
    return DatasetInfo(
        name, num_classes, num_examples, None, train_split, eval_split, **more
    )


# Counts as tensorflow-datasets has them. The last two are not to be downloaded from
# there, prepare them yourself: imagenet21k in its 2011 release (14,197,122 images,
# 21,843 classes as Google counts them), of which the published code keeps the first
# 51,200 to evaluate on; JFT-300M as the paper describes it (ViT paper §4.1; number of
# classes: Sun et al. 2017), with a held-out part of your own as "validation".
PRESETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        digits.DigitsContents.info,
        _preset("cifar10", 10, "train", "test", {"train": 50_000, "test": 10_000}),
        _preset("cifar100", 100, "train", "test", {"train": 50_000, "test": 10_000}),
        _preset(
            "oxford_iiit_pet", 37, "train", "test", {"train": 3_680, "test": 3_669}
        ),
        _preset(
            "oxford_flowers102",
            102,
            "train",
            "test",
            {"train": 1_020, "validation": 1_020, "test": 6_149},
        ),
        _preset(
            "imagenet2012",
            1_000,
            "train",
            "validation",
            {"train": 1_281_167, "validation": 50_000},
        ),
        _preset(
            "imagenet21k",
            21_843,
            "full[51200:]",
            "full[:51200]",
            {"full": 14_197_122},
        ),
        _preset(
            "jft300m",
            18_291,
            "train",
            "validation",
            {"train": 303_000_000, "validation": 50_000},
            multi_label=True,
        ),
    )
}


def open_dataset(dataset: str, data_dir: str = "") -> "Dataset":
    """Opens a data set, wherever its examples come from.

    Args:
      dataset: "digits" (embedded), a folder of images, a table (.csv, .tsv, .jsonl),
        arrays (.npz), or a tensorflow-datasets name or prepared folder.
      data_dir: where tensorflow-datasets keeps its sets; "" = its default.

    Raises:
      UserError: nothing given, or a folder of several prepared sets. Other errors are
        raised when facts or examples are first asked for; see `Dataset.contents`.
    """
    return Dataset(dataset, data_dir)


class Dataset:
    """A data set, to be opened once and passed on.

    Attributes:
      name: as given.
      kind: one of `KINDS`.
      location: the absolute path of the data, or the name of a set that has none.
      data_dir: where tensorflow-datasets keeps its sets, absolute; "" = its default.
    """

    def __init__(self, name: str, data_dir: str = ""):
        self.name = name
        self.kind, self.location = _recognised(name)
        self.data_dir = _absolute(data_dir) if data_dir else ""

    @functools.cached_property
    def contents(self) -> Contents:
        """The opened data, whose facts are never the published ones.

        On first use a folder is listed, a table or the labels of an array file are
        read; a tensorflow-datasets set is prepared where that is possible.

        Raises:
          UserError: no such data set, no images in the folder, rows or arrays that
            cannot be used, a set that is not prepared; the message says what was found
            and what to do.
        """
        return KINDS[self.kind](self.location, self.data_dir)

    @property
    def info(self) -> DatasetInfo:
        """Classes, splits and their sizes; for the presets this needs no data."""
        if self.name in PRESETS:
            return PRESETS[self.name]
        return dataclasses.replace(self.contents.info, name=self.name)

    @property
    def whole(self) -> str:
        """The split to evaluate a model on that was not trained on this data set.

        Where a part is only held out of the training data, that is all of them.
        """
        train, held_out = self.info.train_split, self.info.eval_split
        return f"{train}+{held_out}" if self.info.held_out else held_out

    def split(self, expression: str = "") -> Source:
        """Opens the examples of one split.

        Args:
          expression: such as "train", "train[:98%]", "train+test"; "" = the split to
            train on, or to evaluate on where there is nothing to train on.

        Raises:
          UserError: the data cannot be opened, or have no such split.
        """
        default = self.info.train_split or self.info.eval_split
        return self.contents.split(expression or default)


def _recognised(dataset: str) -> tuple[str, str]:
    """Tells which of `KINDS` a dataset is, and its location.

    A preset is never a folder; "./cifar10" is how to name a folder called so.

    Raises:
      UserError: nothing given, or a folder of several prepared sets.
    """
    if not dataset:
        raise UserError(
            "no dataset given: expected 'digits', a folder of images, a table (.csv, "
            ".tsv, .jsonl), arrays (.npz), or the name of a tensorflow-datasets set"
        )
    if dataset == "digits":
        return "digits", dataset
    if not _is_path(dataset):
        return "tensorflow-datasets", dataset
    path = _absolute(dataset)
    if tfds_sets.prepared_folder(path):
        return "tensorflow-datasets", path
    if os.path.isdir(path):
        return ("table" if tables.split_files(path) else "image folder"), path
    for kind, extensions in _EXTENSIONS.items():
        if path.lower().endswith(extensions):
            return kind, path
    return "image folder", path


def _is_path(dataset: str) -> bool:
    """Whether `dataset` means something on this machine, existing or not."""
    if dataset in PRESETS:
        return False
    ends = ("/", *(end for some in _EXTENSIONS.values() for end in some))
    if dataset.startswith((".", "~", os.sep)) or dataset.lower().endswith(ends):
        return True
    return os.path.exists(dataset)


def _absolute(path: str) -> str:
    # tensorflow-datasets also takes addresses such as gs://bucket/folder.
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
