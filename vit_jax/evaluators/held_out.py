"""The part of a data set to evaluate a model on, and whether it was trained on that."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.data.sources import splits
from vit_jax.data.sources.datasets import Dataset, open_dataset
from vit_jax.data.sources.listings import ListedImages
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
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


def part_to_evaluate(
    config: Mapping[str, Any],
    dataset: str | None = None,
    data_dir: str | None = None,
    options: list[str] | tuple[str, ...] = (),
    split: str | None = None,
) -> Part:
    """Chooses the examples to evaluate on: the held-out ones of the model's own data.

    Args:
      config: the model's; an empty `dataset` if it was not trained here.
      dataset: other data than the config's.
      data_dir: another place of tensorflow-datasets than the config's.
      options: NAME=VALUE of `DataOptions` that differ.
      split: the split; by default that of the run's evaluations, if these are its data,
        or else all examples that are not set apart for training.

    Raises:
      UserError: the data cannot be opened, or have no such split.
    """
    name = config["dataset"] if dataset is None else dataset
    data_dir = config["data_dir"] if data_dir is None else data_dir
    own = _is_own(open_dataset(name).location, config)
    trained = DataOptions.from_config(config.get("data")) if own else DEFAULT_OPTIONS
    opened = open_dataset(name, data_dir, trained.with_flags(options))
    info = opened.info
    if not split:
        split = (config["eval_split"] or info.eval_split) if own else opened.whole
    train_split = (config["train_split"] if own else "") or info.train_split
    if own and opened.options == trained:
        count = _common(opened, split, train_split)
    else:
        count = _common_files(opened, split, config)
    remark = _remark(opened, split, train_split, count)
    return Part(opened, split, train_split, count, remark)


def _is_own(location: str, config: Mapping[str, Any]) -> bool:
    """Returns whether the run was trained on the data at this location."""
    theirs = config["dataset"]
    if not theirs or location == theirs:
        return bool(theirs)
    both_exist = os.path.exists(location) and os.path.exists(theirs)
    return both_exist and os.path.realpath(location) == os.path.realpath(theirs)


def _common(opened: Dataset, split: str, train_split: str) -> int:
    """Counts the examples that are in both splits."""
    if not train_split:
        return 0
    counts, name = opened.contents.info.num_examples, opened.name
    first, second = (splits.resolve(one, counts, name) for one in (split, train_split))
    return sum(
        len(range(max(here.start, there.start), min(here.stop, there.stop)))
        for part, here in first
        for other, there in second
        if part == other
    )


def _common_files(opened: Dataset, split: str, config: Mapping[str, Any]) -> int | None:
    """Counts the files of a split that were trained on; None if that is not known.

    They are compared if the places of the two data sets overlap: a folder inside the
    other, or the same one that is read in another way.
    """
    theirs = config["dataset"]
    if not theirs or not _overlap(opened.location, theirs):
        return None
    try:
        options = DataOptions.from_config(config.get("data"))
        trained = open_dataset(theirs, config["data_dir"], options)
        sources = (
            opened.split(split),
            trained.split(config["train_split"] or trained.info.train_split),
        )
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
    opened: Dataset, split: str, train_split: str, trained_on: int | None
) -> str:
    if trained_on:
        return (
            f"the model was trained on {trained_on:,} of these images, so the numbers "
            "are better than for new ones"
        )
    if trained_on == 0 or not _common(opened, split, train_split):
        return ""
    return (
        "whether the model was trained on some of these images is not known: "
        f"{split!r} includes the data's training images"
    )
