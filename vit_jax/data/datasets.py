"""Which data sets there are and how large they are, as far as possible without them."""

import dataclasses
import os

from vit_jax.data import digits, folders, splits, tfds_sets
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What planning a run needs to know of its data.

    Attributes:
      name: as given.
      num_classes: width of the model's head.
      num_examples: split → number of examples.
      class_names: None where only the data itself would tell.
      train_split, eval_split: the defaults, or what `describe` was asked for.
      multi_label: an example may have any number of labels.
    """

    name: str
    num_classes: int
    num_examples: dict[str, int]
    class_names: tuple[str, ...] | None
    train_split: str
    eval_split: str
    multi_label: bool = False


def _preset(name, num_classes, train_split, eval_split, num_examples, **more):
    more = {"class_names": None, **more}
    return DatasetInfo(
        name,
        num_classes,
        num_examples,
        train_split=train_split,
        eval_split=eval_split,
        **more,
    )


# Counts as tensorflow-datasets has them. The last two are not to be downloaded from
# there, prepare them yourself: imagenet21k in its 2011 release (14,197,122 images,
# 21,843 classes as Google counts them), of which the published code keeps the first
# 51,200 to evaluate on; JFT-300M as the paper describes it (ViT paper §4.1; number of
# classes: Sun et al. 2017), with a held-out part of your own as "validation".
PRESETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        _preset(
            "digits",
            digits.Digits.num_classes,
            "train",
            "test",
            digits.NUM_EXAMPLES,
            class_names=digits.CLASS_NAMES,
        ),
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

    For the presets this needs no data; a folder is listed; another
    tensorflow-datasets set is prepared first where that is possible.

    Args:
      dataset: "digits", a folder, or a tensorflow-datasets name or folder.
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
    counts = {
        split: splits.count(split, info.num_examples, dataset)
        for split in (train_split, eval_split)
    }
    return dataclasses.replace(
        info, num_examples=counts, train_split=train_split, eval_split=eval_split
    )


def default_splits(dataset: str, data_dir: str = "") -> tuple[str, str]:
    """What to train and to evaluate on unless told otherwise."""
    info = _describe(dataset, data_dir)
    return info.train_split, info.eval_split


def is_folder(dataset: str) -> bool:
    """Whether `dataset` means a folder on this machine, existing or not.

    A preset is never a folder; "./cifar10" is how to name a folder called so.
    """
    if not dataset:
        raise UserError(
            "no dataset given: expected 'digits', a folder of images, or the name of a "
            "tensorflow-datasets set"
        )
    if dataset in PRESETS:
        return False
    looks_like_a_path = dataset.startswith((".", "~", os.sep)) or dataset.endswith("/")
    return looks_like_a_path or os.path.exists(dataset)


def locate(dataset: str, data_dir: str = "") -> tuple[str, str]:
    """Both as they mean the same from every current directory: folders absolute."""
    if is_folder(dataset):
        dataset = _absolute(dataset)
    return dataset, _absolute(data_dir) if data_dir else ""


def _absolute(path: str) -> str:
    # tensorflow-datasets also takes addresses such as gs://bucket/folder.
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _describe(dataset: str, data_dir: str) -> DatasetInfo:
    if dataset in PRESETS:
        return PRESETS[dataset]
    if is_folder(dataset):
        path = os.path.expanduser(dataset)
        prepared = tfds_sets.prepared_folder(path)
        if prepared is None:
            listing = folders.list_folder(path)
            return DatasetInfo(
                dataset,
                len(listing.class_names),
                listing.num_examples,
                listing.class_names,
                listing.train_split,
                listing.eval_split,
            )
        builder = tfds_sets.open_folder(prepared)
    else:
        builder = tfds_sets.open_name(dataset, data_dir)
    names = tfds_sets.class_names(builder)
    train_split, eval_split = tfds_sets.default_splits(builder)
    return DatasetInfo(
        dataset,
        len(names),
        tfds_sets.num_examples(builder),
        names,
        train_split,
        eval_split,
        tfds_sets.is_multi_label(builder),
    )
