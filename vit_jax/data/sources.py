"""Opens a data set by name, wherever its examples come from."""

import os

from vit_jax.data import folders, tfds_sets
from vit_jax.data.datasets import default_splits, is_folder
from vit_jax.data.digits import Digits
from vit_jax.data.examples import Example, Source

__all__ = ["Example", "Source", "default_splits", "open_source"]


def open_source(dataset: str, split: str = "", data_dir: str = "") -> Source:
    """Opens one split of a data set.

    Args:
      dataset: "digits" (embedded), a folder of images, or a tensorflow-datasets name
        or prepared folder.
      split: such as "train", "train[:98%]", "train+test"; "" = the split to train on.
      data_dir: where tensorflow-datasets keeps its sets; "" = its default.

    Raises:
      UserError: no such dataset or split, no images in the folder, a set that is not
        prepared; the message says what was found and what to do.
    """
    split = split or default_splits(dataset, data_dir)[0]
    if dataset == "digits":
        return Digits(split)
    if is_folder(dataset):
        path = os.path.expanduser(dataset)
        prepared = tfds_sets.prepared_folder(path)
        if prepared is None:
            return folders.ImageFolder(folders.list_folder(path), split)
        builder = tfds_sets.open_folder(prepared)
    else:
        builder = tfds_sets.open_name(dataset, data_dir)
    return tfds_sets.TfdsSet(builder, split)
