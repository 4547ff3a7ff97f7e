"""Opens a data set by name, wherever its examples come from."""

from vit_jax.data.sources.datasets import KINDS, default_splits, find
from vit_jax.data.sources.protocol import Example, Source

__all__ = ["Example", "Source", "default_splits", "open_source"]


def open_source(dataset: str, split: str = "", data_dir: str = "") -> Source:
    """Opens one split of a data set.

    Args:
      dataset: "digits" (embedded), a folder of images, a table (.csv, .tsv, .jsonl),
        arrays (.npz), or a tensorflow-datasets name or prepared folder.
      split: such as "train", "train[:98%]", "train+test"; "" = the split to train on.
      data_dir: where tensorflow-datasets keeps its sets; "" = its default.

    Raises:
      UserError: no such dataset or split, no images in the folder, rows or arrays that
        cannot be used, a set that is not prepared; the message says what was found and
        what to do.
    """
    split = split or next(filter(None, default_splits(dataset, data_dir)))
    kind, place = find(dataset)
    return KINDS[kind].open_split(place, split, data_dir)
