"""The part of a data set to evaluate a model on, and whether it was trained on that."""

import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.data.sources import splits
from vit_jax.data.sources.datasets import Dataset, open_dataset
from vit_jax.data.sources.listings import ListedImages
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.errors import UserError


class Part(NamedTuple):
    """Part of a data set, to evaluate on.

    Attributes:
      dataset: the opened data.
      split: the split.
      train_split: split to fit on, for an evaluator that fits something.
      trained_on: number of its examples that the model's own run was trained on; None =
        unknown. Runs before that one, whose weights it started from, do not count.
      remark: a sentence for the user; "" = nothing needs saying.
    """

    dataset: Dataset
    split: str
    train_split: str
    trained_on: int | None
    remark: str


class TrainedWith(NamedTuple):
    """The data of a model's own run, as its checkpoint records them.

    Attributes:
      config: the run's; its `dataset` is empty if the model was not trained here.
      examples: split → number of examples; {} if that was not recorded.
      fingerprints: split → `Source.fingerprint`; {} if that was not recorded.
    """

    config: Mapping[str, Any]
    examples: Mapping[str, int] = types.MappingProxyType({})
    fingerprints: Mapping[str, Mapping[str, str]] = types.MappingProxyType({})

    @property
    def dataset(self) -> str:
        """Location of the data; "" = the model was not trained here."""
        return self.config["dataset"]

    @property
    def options(self) -> DataOptions:
        """How the run read the data."""
        return DataOptions.from_config(self.config.get("data"))

    def splits(self, info: DatasetInfo) -> tuple[str, str]:
        """Returns the run's splits for training and evaluation."""
        train, evaluation = self.config["train_split"], self.config["eval_split"]
        return train or info.train_split, evaluation or info.eval_split


def part_to_evaluate(
    trained: TrainedWith,
    dataset: str | None = None,
    data_dir: str | None = None,
    options: Sequence[str] = (),
    split: str | None = None,
) -> Part:
    """Chooses the examples to evaluate on: the held-out ones of the model's own data.

    Args:
      trained: the data that the model was trained with.
      dataset: other data than these.
      data_dir: another place of tensorflow-datasets.
      options: NAME=VALUE of `DataOptions` that differ.
      split: the split; by default that of the run's evaluations, if these are its data,
        or else all examples that are not set apart for training.

    Raises:
      UserError: the data cannot be opened, or have no such split.
    """
    name = trained.dataset if dataset is None else dataset
    where = trained.config["data_dir"] if data_dir is None else data_dir
    own, opened = _opened(trained, name, where, options)
    train_split, eval_split = opened.info.train_split, opened.whole
    if own:
        train_split, eval_split = trained.splits(opened.info)
    split = split or eval_split
    contents = opened.contents_of(split)
    splits.check(split, contents.info.problems)
    if own and opened.options == trained.options:
        count = None
        if _unchanged(opened, trained, {split, train_split}):
            count = opened.common(split, train_split)
    else:
        count = _common_files(opened, split, trained)
    remark = _remark(opened, split, train_split, count, own=own)
    return Part(opened, split, train_split, count, remark)


def _opened(
    trained: TrainedWith, name: str, data_dir: str, options: Sequence[str]
) -> tuple[bool, Dataset]:
    """Opens data as the run read its own, if these are the run's; says whether so."""
    plain = _to_evaluate(name, data_dir, DEFAULT_OPTIONS.with_flags(options))
    if not trained.dataset:
        return False, plain
    own = _to_evaluate(name, data_dir, trained.options.with_flags(options))
    if _same_place(own.location, trained.dataset) or _moved(own, trained):
        return True, own
    # The same handle, if possible, because it may be open already.
    return False, own if own.options == plain.options else plain


def _to_evaluate(name: str, data_dir: str, options: DataOptions) -> Dataset:
    return open_dataset(name, data_dir, options, to_train=False)


def _same_place(location: str, theirs: str) -> bool:
    if location == theirs:
        return True
    both_exist = os.path.exists(location) and os.path.exists(theirs)
    return both_exist and os.path.realpath(location) == os.path.realpath(theirs)


def _moved(opened: Dataset, trained: TrainedWith) -> bool:
    """Returns whether these are the run's data in another place."""
    if not trained.fingerprints:
        return False
    try:
        info = opened.info.with_splits(*trained.splits(opened.info))
    except UserError:  # they have no such splits
        return False
    if info.num_examples != trained.examples:
        return False
    return _unchanged(opened, trained, trained.fingerprints)


def _unchanged(opened: Dataset, trained: TrainedWith, names: Iterable[str]) -> bool:
    """Returns whether splits of the run's data are what they were in training.

    What was not recorded is taken for unchanged.
    """
    for split in set(names) & trained.examples.keys():
        source = opened.split(split)
        if len(source) != trained.examples[split]:
            return False
        recorded = trained.fingerprints.get(split)
        if recorded is not None and recorded != source.fingerprint():
            return False
    return True


def _common_files(opened: Dataset, split: str, trained: TrainedWith) -> int | None:
    """Counts the files of a split that were trained on; None if that is not known.

    They are compared if the places of the two data sets overlap: a folder inside the
    other, or the same one that is read in another way.
    """
    if not trained.dataset or not _overlap(opened.location, trained.dataset):
        return None
    try:
        theirs = _to_evaluate(
            trained.dataset, trained.config["data_dir"], trained.options
        )
        train_split, _ = trained.splits(theirs.info)
        sources = opened.split(split), theirs.split(train_split)
    except UserError:  # the data that it was trained on are gone
        return None
    here, there = (_files(source) for source in sources)
    return None if here is None or there is None else len(here & there)


def _overlap(one: str, other: str) -> bool:
    if not (os.path.exists(one) and os.path.exists(other)):
        return False
    # A table lists files of the folder that it is in.
    folders = [
        os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path))
        for path in (one, other)
    ]
    return os.path.commonpath(folders) in folders


def _files(source: Any) -> set[str] | None:
    """Returns the paths of a source's files, without links; None if it has no files."""
    if not isinstance(source, ListedImages):
        return None
    folder = source.listing.path
    return {os.path.realpath(os.path.join(folder, path)) for path in source.paths()}


def _remark(
    opened: Dataset, split: str, train_split: str, trained_on: int | None, *, own: bool
) -> str:
    if trained_on:
        return (
            f"the model was trained on {trained_on:,} of these images, so the numbers "
            "are better than for new ones"
        )
    if trained_on == 0:
        return ""
    unknown = "whether the model was trained on some of these images is not known"
    if own:
        return f"{unknown}: the data have changed since, or are read in another way"
    if opened.common(split, train_split):
        return f"{unknown}: {split!r} includes the data's training images"
    return ""
