"""The labels and weights of a tensorflow-datasets set, read without the images.

Class labels are numbers whose names are in the set's description. The classes of text
labels are only in the records, so all records are read once. Sampling by class uses the
same pass. Its results are cached.
"""

import dataclasses
import logging
import os
from typing import Any

import numpy as np

from vit_jax import cache
from vit_jax.data.hashing import stable_hash
from vit_jax.data.sources.listings import Ragged
from vit_jax.data.sources.protocol import in_order
from vit_jax.errors import UserError

# A name of our own, because other sets use "weight" for other quantities.
WEIGHT_KEY = "example_weight"
_FORMAT = 1  # of the cached arrays
_AT_ONCE = 64  # records; bounds the memory of a pass
_UNREADABLE = -1
WORTH_KEEPING = 5_000  # reading fewer records again is as fast as the cache

logger = logging.getLogger(__name__)
_read: dict[str, dict[str, np.ndarray]] = {}


@dataclasses.dataclass(frozen=True)
class Labels:
    """The feature that holds the labels.

    Attributes:
      key: its name.
      feature: a ClassLabel or Text, or a Sequence of ClassLabel.
      multi_label: whether an example has any number of labels.
      class_names: in the order of the labels.
      of_text: text → label; None unless the feature is a Text.
    """

    key: str
    feature: Any
    multi_label: bool
    class_names: tuple[str, ...]
    of_text: dict[str, int] | None = None

    def decode(self, value: Any) -> int | tuple[int, ...]:
        """Converts a record's value to the label, or the labels, of an `Example`.

        Raises:
          ValueError: it is not one of the classes.
        """
        if self.of_text is not None:
            return self.of_text[_text(value)]
        found = [int(one) for one in value] if self.multi_label else [int(value)]
        for one in found:
            if not 0 <= one < len(self.class_names):
                raise ValueError(
                    f"its label is {one}, not one of 0…{len(self.class_names) - 1}"
                )
        return tuple(found) if self.multi_label else found[0]


def find_labels(builder) -> Labels:
    """Finds the feature named "label", or the only one that holds class labels.

    Raises:
      UserError: there is no such feature, or several.
    """
    import tensorflow_datasets as tfds

    single, several = {}, {}
    for key, feature in builder.info.features.items():
        if isinstance(feature, tfds.features.ClassLabel):
            single[key] = feature
        elif isinstance(feature, tfds.features.Sequence) and isinstance(
            feature.feature, tfds.features.ClassLabel
        ):
            several[key] = feature
    # Sequences are considered only if there is no feature with a single label.
    for multi_label, found in ((False, single), (True, several)):
        key = "label" if "label" in found else next(iter(found), None)
        if key is not None and (key == "label" or len(found) == 1):
            feature = found[key]
            names = (feature.feature if multi_label else feature).names
            return Labels(key, feature, multi_label, tuple(names))
    text = dict(builder.info.features.items()).get("label")
    if isinstance(text, tfds.features.Text):
        split_names = [
            Ragged(kept["names/flat"], kept["names/ends"]).texts()
            for kept in (_columns(builder, "label", s) for s in builder.info.splits)
        ]
        names = in_order({name for some in split_names for name in some})
        codes = {name: code for code, name in enumerate(names)}
        return Labels("label", text, False, names, codes)
    raise unsuitable(builder, "one feature of class labels (ClassLabel)")


def all_labels(builder, labels: Labels, split: str) -> np.ndarray:
    """Returns every example's label, int32 [n], for a set with single labels.

    An example whose record cannot be read gets the label of the next one, which also
    replaces it when images are read.

    Args:
      builder: the set's builder.
      labels: from `find_labels`.
      split: the name of a split, not a slice.

    Raises:
      UserError: no record can be read.
    """
    kept = _columns(builder, labels.key, split)
    values = kept["values"]
    if labels.of_text is not None:
        names = Ragged(kept["names/flat"], kept["names/ends"]).texts()
        codes = np.array([*(labels.of_text[name] for name in names), _UNREADABLE])
        values = codes[values]  # −1 selects the last code, _UNREADABLE
    good = np.flatnonzero((values >= 0) & (values < len(labels.class_names)))
    if len(values) and not len(good):
        raise UserError(
            f"no example of {builder.info.full_name}/{split} has a readable label. "
            "Choose another split, or prepare the set again."
        )
    following = np.searchsorted(good, np.arange(len(values))) % max(len(good), 1)
    return values[good[following]].astype(np.int32)


def label_lists(builder, labels: Labels, split: str, selected: slice) -> np.ndarray:
    """Returns the labels of some examples of a multi-label set, concatenated, int32.

    Examples whose record cannot be read, and labels that are not classes, are left out.

    Args:
      builder: the set's builder.
      labels: from `find_labels`.
      split: the name of a split.
      selected: which of its examples.
    """
    import tensorflow_datasets as tfds

    records = raw_records(builder, split)
    chosen = range(len(records))[selected]
    name = f"{builder.info.full_name}/{split}"
    if len(chosen) >= WORTH_KEEPING:
        logger.info("reading the labels of %s (%s examples)", name, f"{len(chosen):,}")
    features = tfds.features.FeaturesDict({labels.key: labels.feature})
    found: list[int] = []
    for first in range(0, len(chosen), _AT_ONCE):
        for record in _records(records, chosen[first : first + _AT_ONCE]):
            try:
                row: Any = features.deserialize_example_np(record)
                found += [int(one) for one in row[labels.key]]
            except Exception:  # reported when its image is read
                continue
    values = np.array(found, np.int32)
    return values[(values >= 0) & (values < len(labels.class_names))]


def all_weights(builder, labels: Labels, split: str) -> np.ndarray:
    """Returns every example's weight, float64 [n]; see `all_labels`."""
    count = builder.info.splits[split].num_examples
    if WEIGHT_KEY not in dict(builder.info.features.items()):
        return np.ones(count)
    return _columns(builder, labels.key, split)["weights"]


def unsuitable(builder, expected: str) -> UserError:
    features = ", ".join(
        f"{key} ({type(feature).__name__})"
        for key, feature in builder.info.features.items()
    )
    return UserError(
        f"the dataset {builder.info.full_name} is not for classification: found "
        f"{features}, expected {expected}. Choose a set for image classification."
    )


def raw_records(builder, split: str):
    """Returns the serialised examples of a split, by index."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return builder.as_data_source(split, deserialize_method=raw)


def _columns(builder, key: str, split: str) -> dict[str, np.ndarray]:
    """Reads labels and weights of a whole split, from the cache or from the records.

    Returns:
      values: int32 [n], the label, −1 if it cannot be read; for texts, an index into
        names. weights: float64 [n]. names/flat, names/ends: the texts (see `Ragged`).
    """
    records = raw_records(builder, split)  # first: it decides the files' format
    shards = builder.info.splits[split].filepaths
    found = [(shard.name, shard.stat()) for shard in shards if shard.exists()]
    versions = [(name, stat.length, stat.mtime) for name, stat in found]
    identity = f"{_FORMAT} {os.fspath(builder.data_dir)} {split} {key} {versions}"
    file = f"labels/{stable_hash(identity):016x}.npz"
    if file not in _read:
        kept = cache.load_arrays(file)
        if kept is None or set(kept) != {
            "values",
            "weights",
            "names/flat",
            "names/ends",
        }:
            kept = _read_columns(builder, key, split, records)
            if len(records) >= WORTH_KEEPING:
                cache.store_arrays(file, kept)
        _read[file] = kept
    return _read[file]


def _read_columns(builder, key: str, split: str, records) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds

    count, name = len(records), f"{builder.info.full_name}/{split}"
    if count >= WORTH_KEEPING:
        logger.info("reading the labels of %s once (%s examples)", name, f"{count:,}")
    every = dict(builder.info.features.items())
    wanted = {one: every[one] for one in (key, WEIGHT_KEY) if one in every}
    features = tfds.features.FeaturesDict(wanted)
    values, weights = np.full(count, _UNREADABLE, np.int32), np.ones(count)
    code_of: dict[str, int] = {}
    for first in range(0, count, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, count))
        for index, record in zip(indices, _records(records, indices), strict=True):
            try:
                found: Any = features.deserialize_example_np(record)
                label = found[key]
                if isinstance(label, bytes | str):
                    label = code_of.setdefault(_text(label), len(code_of))
                if np.ndim(label) == 0:
                    values[index] = label
                weights[index] = found.get(WEIGHT_KEY, 1.0)
            except Exception:  # reported when its image is read
                continue
    names = Ragged.of_texts(list(code_of))
    return {
        "values": values,
        "weights": weights,
        "names/flat": names.flat,
        "names/ends": names.ends,
    }


def _records(records, indices: range) -> list[bytes]:
    """Reads records; one that cannot be read is b""."""
    try:
        return list(records.__getitems__(indices))
    except Exception:  # some record is damaged
        return [_record(records, index) for index in indices]


def _record(records, index: int) -> bytes:
    try:
        return records[index]
    except Exception:
        return b""


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
