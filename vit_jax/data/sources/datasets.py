"""Which data sets there are and how large they are, as far as possible without them."""

import dataclasses
import os

from vit_jax.data.sources import (
    arrays,
    digits,
    folders,
    splits,
    tables,
    tfds_sets,
)
from vit_jax.data.sources.protocol import DatasetInfo, Kind
from vit_jax.errors import UserError

__all__ = [
    "PRESETS",
    "DatasetInfo",
    "default_splits",
    "describe",
    "find",
    "locate",
    "whole",
]

# The only list of them; `find` is the only place that tells them apart.
KINDS: dict[str, Kind] = {
    "digits": digits,
    "image folder": folders,
    "table": tables,
    "arrays": arrays,
    "tensorflow-datasets": tfds_sets,
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
        digits.describe(),
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


def describe(
    dataset: str, train_split: str = "", eval_split: str = "", data_dir: str = ""
) -> DatasetInfo:
    """Classes, and the two splits with their numbers of examples.

    For the presets this needs no data; a folder is listed, a table or the labels of an
    array file are read; another tensorflow-datasets set is prepared first where that is
    possible.

    Args:
      dataset: "digits", a folder, a table, an array file, or a tensorflow-datasets name
        or folder.
      train_split: "" = the dataset's default.
      eval_split: "" = the dataset's default.
      data_dir: where tensorflow-datasets keeps its sets; "" = its default.

    Returns:
      `num_examples` holds the counts of exactly `train_split` and `eval_split`.

    Raises:
      UserError: no such dataset or split.
    """
    info = _describe(dataset, data_dir)
    train_split = train_split or info.train_split
    eval_split = eval_split or info.eval_split
    if not train_split:
        raise UserError(
            f"{dataset} has nothing to train on, only {', '.join(info.num_examples)}: "
            "put images to train on below FOLDER/train, or name a split with "
            "--config.train_split"
        )
    counts = {
        split: splits.count(split, info.num_examples, dataset)
        for split in (train_split, eval_split)
    }
    return dataclasses.replace(
        info,
        num_examples=counts,
        train_split=train_split,
        eval_split=eval_split,
        held_out=info.held_out and eval_split == info.eval_split,
    )


def default_splits(dataset: str, data_dir: str = "") -> tuple[str, str]:
    """What to train and to evaluate on unless told otherwise."""
    info = _describe(dataset, data_dir)
    return info.train_split, info.eval_split


def whole(dataset: str, data_dir: str = "") -> str:
    """What to evaluate on of data that nobody trained on: all where it is undivided."""
    info = _describe(dataset, data_dir)
    return f"{info.train_split}+{info.eval_split}" if info.held_out else info.eval_split


def find(dataset: str) -> tuple[str, str]:
    """Which of `KINDS` a dataset is, and its place: an absolute path, or its name.

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


def locate(dataset: str, data_dir: str = "") -> tuple[str, str]:
    """Both as they mean the same from every current directory: paths absolute."""
    return find(dataset)[1], _absolute(data_dir) if data_dir else ""


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


def _describe(dataset: str, data_dir: str) -> DatasetInfo:
    if dataset in PRESETS:
        return PRESETS[dataset]
    kind, place = find(dataset)
    return dataclasses.replace(KINDS[kind].describe(place, data_dir), name=dataset)
