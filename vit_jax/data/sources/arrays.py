"""Array files as data sets: images and labels in one .npz file.

Its arrays are called one of

    images, labels                                a tenth is held out to evaluate on
    train_images, train_labels, val_images, …     as MedMNIST has them
    x_train, y_train, x_test, y_test              as Keras has them

Images are uint8 [n, h, w] or [n, h, w, c]. Labels are whole numbers [n] or [n, 1]
counted from 0, or zeros and ones [n, k]: any number of k classes each. `weights` or
`train_weights` …, numbers of at least 0, and `class_names`, texts, are optional.

A split's images are held in memory as long as one of its sources is; nothing is ever
unpickled.
"""

import logging
import weakref

import numpy as np

from vit_jax.data.sources import npz, splits
from vit_jax.data.sources.array_file import ArrayFile, read_array_file, version
from vit_jax.data.sources.protocol import (
    DatasetInfo,
    Example,
    check_single_label,
)
from vit_jax.errors import UserError

EXTENSIONS = (".npz",)

logger = logging.getLogger(__name__)
# (file, its version, name) → images: two splits of one array need it once.
_held: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


class ArrayContents:
    """Labels and weights of all splits; the images stay in the file."""

    def __init__(self, path: str):
        self._file = read_array_file(path)

    @property
    def info(self) -> DatasetInfo:
        file = self._file
        return DatasetInfo(
            file.path,
            len(file.class_names),
            file.num_examples,
            file.class_names,
            *list(file.parts)[:2],
            multi_label=file.multi_label,
            held_out=file.held_out,
        )

    def split(self, expression: str) -> "ArrayImages":
        return ArrayImages(self._file, expression)


class ArrayImages:
    """One split; images are uint8 [h, w, c]."""

    def __init__(self, file: ArrayFile, split: str):
        self._file, self._split = file, split
        self.class_names = file.class_names
        self.multi_label = file.multi_label
        self._parts = splits.Parts(split, file.num_examples, f"the file {file.path}")
        self._images = {
            name: _images(file, file.parts[name].images) for name in self._parts.names
        }

    def __reduce__(self):
        # Another process reads the file again; that is faster than to send it all.
        return _read_split, (self._file.path, self._split)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Example:
        split, position = self._parts[index]
        part = self._file.parts[split]
        row, label = part.rows[position], part.labels[position]
        image = self._images[split][row]
        return Example(
            image if image.ndim == 3 else image[:, :, None],
            tuple(np.flatnonzero(label).tolist()) if self.multi_label else int(label),
            f"{self._file.path}/{part.images}[{row}]",
            float(part.weights[position]),
        )

    def labels(self) -> np.ndarray:
        check_single_label(self, self._file.path)
        parts = self._file.parts.items()
        return self._parts.gather({split: part.labels for split, part in parts})

    def weights(self) -> np.ndarray:
        parts = self._file.parts.items()
        return self._parts.gather({split: part.weights for split, part in parts})


def _read_split(path: str, split: str) -> ArrayImages:
    return ArrayContents(path).split(split)


def _images(file: ArrayFile, name: str) -> np.ndarray:
    key = (file.path, file.version, name)
    images = _held.get(key)
    if images is None:
        if version(file.path) != file.version:
            raise UserError(
                f"{file.path} was written again after its labels had been read. Start "
                "again when it is complete."
            )
        images = npz.read(file.path, name)
        gigabytes = images.nbytes / 1e9
        logger.info("%s: %s holds %.2f GB in memory", file.path, name, gigabytes)
        images.flags.writeable = False  # every example is a part of it
        _held[key] = images
    return images
