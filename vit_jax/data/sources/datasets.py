"""Opening of data sets of any kind, and facts of published sets without their data."""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterable

from vit_jax.data.sources import (
    digits,
    folders,
    imagenet,
    splits,
    tfds_sets,
)
from vit_jax.data.sources.array_files import arrays, idx
from vit_jax.data.sources.image_files import in_words
from vit_jax.data.sources.listings import NotForTraining
from vit_jax.data.sources.options import DEFAULT_OPTIONS, FIRST_RULES, DataOptions
from vit_jax.data.sources.protocol import Contents, DatasetInfo, Kind, Source
from vit_jax.data.sources.tables.files import EXTENSIONS as TABLE_EXTENSIONS
from vit_jax.data.sources.tables.files import OTHER_EXTENSIONS
from vit_jax.data.sources.tables.folders import class_folders, find_tables
from vit_jax.data.sources.tables.reading import read_tables
from vit_jax.data.sources.unlabelled import UnlabelledFolder
from vit_jax.errors import UserError
from vit_jax.words import did_you_mean, shortened

logger = logging.getLogger(__name__)

# Kind → the function that opens it. Only `_recognised` decides the kind of a data set.
KINDS: dict[str, Kind] = {
    "digits": lambda location, data_dir, options: digits.DigitsContents(),
    "image folder": lambda location, data_dir, options: folders.list_folder(
        location, options
    ),
    "unlabelled": lambda location, data_dir, options: folders.list_folder(
        location, options, UnlabelledFolder
    ),
    "table": lambda location, data_dir, options: read_tables(location, options),
    "arrays": lambda location, data_dir, options: arrays.ArrayContents(
        location, options
    ),
    "tensorflow-datasets": tfds_sets.open_set,
}
_EXTENSIONS = {"table": TABLE_EXTENSIONS, "arrays": arrays.EXTENSIONS}
_A_KIND = {
    "digits": "the embedded digits",
    "image folder": "a folder of images",
    "unlabelled": "a folder of images without labels",
    "arrays": "an array file",
    "tensorflow-datasets": "a tensorflow-datasets set",
}
# Kinds whose location is always a path.
_OF_FILES = ("image folder", "unlabelled", *_EXTENSIONS)


def _preset(name, num_classes, train_split, eval_split, num_examples, **more):
    return DatasetInfo(
        name, num_classes, num_examples, None, train_split, eval_split, **more
    )


# Counts are those of tensorflow-datasets. It does not provide the last two, which users
# prepare themselves: imagenet21k is the 2011 release (14,197,122 images, 21,843 classes
# by Google's count), whose first 51,200 images the published code keeps for evaluation;
# JFT-300M is as described in the ViT paper, §4.1 (number of classes: Sun et al. 2017),
# with a held-out part of the user's own as "validation".
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


def open_dataset(
    dataset: str,
    data_dir: str = "",
    options: DataOptions = DEFAULT_OPTIONS,
    *,
    to_train: bool = True,
) -> "Dataset":
    """Opens a data set of any kind.

    Args:
      dataset: "digits" (embedded), a folder of images, a table (.csv, .tsv, .jsonl,
        .parquet), arrays (.npz, or a folder of MNIST's kind of files), or a
        tensorflow-datasets name or prepared folder.
      data_dir: where tensorflow-datasets stores data sets; "" = its default.
      options: how its files are read.
      to_train: whether a run may train on it. False = only to evaluate a trained model:
        one class is enough, and no class has to be in a split for training.

    Raises:
      UserError: `dataset` is empty, a folder of several prepared sets, or of a kind
        that does not exist. Other errors are raised when facts or examples are first
        requested; see `Dataset.contents`.
    """
    return Dataset(dataset, data_dir, options, to_train=to_train)


class Dataset:
    """A handle of a data set, which is opened at most once.

    Attributes:
      name: as given.
      kind: one of `KINDS`.
      location: the absolute path of the data, or the name of a set that has none.
      data_dir: where tensorflow-datasets stores data sets, absolute; "" = its default.
      options: how its files are read.
      to_train: see `open_dataset`.
      announces: whether opening it logs its remarks, and what was left out. A command
        that shows them itself sets it to False.
    """

    def __init__(
        self,
        name: str,
        data_dir: str = "",
        options: DataOptions = DEFAULT_OPTIONS,
        *,
        to_train: bool = True,
    ):
        self.name, self.options, self.announces = name, options, True
        self.to_train = to_train
        self.kind, self.location, self._beside = _recognised(name, options)
        self.data_dir = _absolute(data_dir) if data_dir else ""

    @functools.cached_property
    def contents(self) -> Contents:
        """The opened data; its facts come from the data even for a preset.

        On first use, a folder is listed, a table or the labels of an array file are
        read, and a tensorflow-datasets set is prepared if that is possible.

        Raises:
          UserError: there is no such data set, the folder has no images, rows or arrays
            cannot be used, or the set is not prepared; the message says what was found
            and what to do.
        """
        self._announce(self.about_name)
        _check_options(self.kind, self.location, self.options)
        try:
            contents = KINDS[self.kind](self.location, self.data_dir, self.options)
        except NotForTraining as error:
            if self.to_train:
                raise
            contents = error.listing
        self._announce(getattr(contents, "remarks", ()))
        share = self.options.hold_out
        if share != DEFAULT_OPTIONS.hold_out and not contents.info.held_out:
            self._announce(
                [
                    f"data.hold_out={share:g} has no effect: there is a split for "
                    f"evaluation, {contents.info.eval_split}"
                ]
            )
        if left_out := in_words(getattr(contents, "left_out", {})):
            self._announce([f"left out: {left_out}"])
        return contents

    def _announce(self, lines: Iterable[str]) -> None:
        for line in lines if self.announces else ():
            logger.warning("%s: %s", self.name, line)

    @property
    def about_name(self) -> tuple[str, ...]:
        """Sentences that say what was taken, if `name` could mean other data."""
        if self.options.kind:
            return ()
        other = _other_meaning(self.name, self.kind, self.location)
        return tuple(filter(None, (other, self._beside)))

    @property
    def info(self) -> DatasetInfo:
        """Classes, splits and their sizes; presets need no data for this."""
        if self.name in PRESETS and self.location == self.name:
            return PRESETS[self.name]
        return dataclasses.replace(self.contents.info, name=self.name)

    @property
    def whole(self) -> str:
        """The split for evaluating a model that was not trained on this data set.

        If the evaluation split is held out of the training data, it is all of them.
        """
        train, held_out = self.info.train_split, self.info.eval_split
        return f"{train}+{held_out}" if self.info.held_out else held_out

    def split(self, expression: str = "") -> Source:
        """Opens the examples of one split.

        Args:
          expression: such as "train", "train[:98%]", "train+test"; "" = the training
            split, or the evaluation split if there is nothing to train on.

        Raises:
          UserError: the data cannot be opened, or there is no such split.
        """
        expression = expression or self.info.train_split or self.info.eval_split
        return self.contents_of(expression).split(expression)

    def common(self, split: str, train_split: str) -> int:
        """Counts the examples that are in both splits; none if there is no second."""
        if not train_split:
            return 0
        counts = self.contents_of(split).info.num_examples
        return splits.common(split, train_split, counts, self.name)

    def contents_of(self, expression: str) -> Contents:
        """Returns the contents from which a split is read.

        They are others than `contents` if only those have no usable split of this name.
        """
        contents = self.contents
        if not self.to_train:
            problem = splits.problem_of(expression, contents.info.problems)
            if isinstance(problem, NotForTraining):
                return problem.listing
        return contents


# Options that say something about the columns and cells of a table.
_ONLY_TABLES = (
    "path_column",
    "label_columns",
    "split_column",
    "group_column",
    "image_root",
    "image_suffix",
)


def _check_options(kind: str, location: str, options: DataOptions) -> None:
    """Raises UserError if options would have no effect on data of this kind."""
    given = [name for name in _ONLY_TABLES if getattr(options, name)]
    if kind != "table" and given:
        shown = ", ".join(f"data.{name}={getattr(options, name)!r}" for name in given)
        raise UserError(
            f"{shown}: {location} is read as {_A_KIND.get(kind, kind)}, which has no "
            "columns. Omit it; or pass a table as the dataset, or data.kind=table for "
            "one in that folder"
        )


def _recognised(dataset: str, options: DataOptions) -> tuple[str, str, str]:
    """Returns the kind of a data set, one of `KINDS`, and its location.

    The third is a sentence about data of another kind beside it, or "". A preset's name
    is never taken for a folder; write "./cifar10" for a folder of that name.

    Raises:
      UserError: `dataset` is empty, a folder of several prepared sets, or there is no
        such kind as `options.kind`.
    """
    kind = options.kind
    if kind and kind not in KINDS:
        raise UserError(
            f"data.kind={kind!r}: choose from {', '.join(KINDS)}"
            + did_you_mean(kind, KINDS)
        )
    if not dataset:
        raise UserError(
            "no dataset given: expected 'digits', a folder of images, a table (.csv, "
            ".tsv, .jsonl, .parquet), arrays (.npz), or the name of a "
            "tensorflow-datasets set"
        )
    if kind:
        return kind, _absolute(dataset) if kind in _OF_FILES else dataset, ""
    if dataset == "digits":
        return "digits", dataset, ""
    if not _is_path(dataset):
        return "tensorflow-datasets", dataset, ""
    path = _absolute(dataset)
    if prepared := tfds_sets.prepared_folder(path):
        return "tensorflow-datasets", path, _beside_prepared(path, prepared, options)
    if os.path.isfile(path) and idx.is_named_so(path):
        path = os.path.dirname(path)
    if os.path.isdir(path):
        kind, beside = _kind_of_folder(path, options)
        return kind, path, beside
    for kind, extensions in _EXTENSIONS.items():
        if path.lower().endswith(extensions):
            return kind, path, ""
    if path.lower().endswith(OTHER_EXTENSIONS) and os.path.isfile(path):
        return "table", path, ""
    return "image folder", path, ""


def _kind_of_folder(folder: str, options: DataOptions) -> tuple[str, str]:
    """Returns the kind, and a sentence that says it if there are several, else ""."""
    if files := idx.find(folder):
        return "arrays", _beside_idx(folder, list(files.values()), options)
    found = find_tables(folder, options)
    if not found:
        return "image folder", ""
    if options.rules == FIRST_RULES:
        return "table", ""
    folders = class_folders(folder, options)
    if folders.all < 2:
        return "table", ""
    # A table that does not have to be one is often beside folders of classes.
    kind, other = "image folder", "table"
    if found.sure or folders.likely < 2:
        kind, other = other, kind
    taken = {"table": found.names, "image folder": "the folders of classes"}
    what = "classes" if folders.likely == 2 else "images"
    return kind, (
        f"{folder} has both {found.names} and folders of {what}: {taken[kind]} "
        f"gave the labels; data.kind={other!r} takes {taken[other]} instead"
    )


def _beside_idx(folder: str, files: list[str], options: DataOptions) -> str:
    if class_folders(folder, options).all < 2:
        return ""
    return (
        f"{folder} has both IDX files and folders of classes: "
        f"{shortened([os.path.basename(file) for file in files], most=2)} were taken; "
        "data.kind='image folder' takes the folders instead"
    )


def _beside_prepared(folder: str, prepared: str, options: DataOptions) -> str:
    """Says that a prepared set was taken, if folders of classes are beside it."""
    if class_folders(folder, options).all < 2:
        return ""
    return (
        f"{folder} has both a set prepared by tensorflow-datasets ({prepared}) and "
        "folders of classes: the prepared set was taken; data.kind='image folder' "
        "takes the folders instead"
    )


def _other_meaning(name: str, kind: str, location: str) -> str:
    """Says which data set a name means, if it could also mean another; else ""."""
    if not re.fullmatch(r"\w+", name):
        return ""
    here = os.path.abspath(name)
    if location == name:
        which = "embedded" if kind == "digits" else "tensorflow-datasets"
        if not os.path.exists(here):
            return ""
        return f"this is the {which} data set, not {here}; for that, write ./{name}"
    # Imported, tensorflow-datasets would take a second to list its sets.
    package = imagenet.package_folder()
    code, checksums = package / "datasets" / name, package / "url_checksums"
    if not code.is_dir() and not (checksums / f"{name}.txt").is_file():
        return ""
    return (
        f"this is {here}, not the tensorflow-datasets set of the same name; for that, "
        "pass data.kind=tensorflow-datasets"
    )


def _is_path(dataset: str) -> bool:
    """Returns whether `dataset` is a path on this machine, existing or not."""
    if dataset in PRESETS:
        return False
    ends = ("/", *(end for some in _EXTENSIONS.values() for end in some))
    if dataset.startswith((".", "~", os.sep)) or dataset.lower().endswith(ends):
        return True
    return os.path.exists(dataset)


def _absolute(path: str) -> str:
    # tensorflow-datasets also takes URLs such as gs://bucket/folder.
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
