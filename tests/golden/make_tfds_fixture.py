"""Writes tests/fixtures/tfds: tiny prepared tensorflow-datasets sets to read back.

Needs TensorFlow, which nothing else here does. In an environment of its own:

    pip install tensorflow-cpu tensorflow-datasets importlib_resources
    pip install scikit-learn pillow
    python tests/golden/make_tfds_fixture.py

tiny_digits: 24 images of the digits 0, 1 and 2, 12×12, half PNG and half JPEG,
  16 to train and 8 to test, as ArrayRecord. A second image-like feature that nobody
  asked for is there to show that only image and label are decoded.
tiny_tags: 6 images with any number of 4 tags each, one split, as ArrayRecord.
  (An ArrayRecord file is padded to 128 KiB, nearly all zeros.)
tiny_tfrecord: tiny_digits in the format that cannot be read at random.
"""

import io
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "tfds"
CLASSES = ("zero", "one", "two")
TAGS = ("round", "straight", "even", "odd")
TAGS_OF = {0: ("round", "even"), 1: ("straight", "odd"), 2: ()}


def encoded(index: int) -> tuple[bytes, int]:
    """The index-th digit below 3 as PNG (even) or JPEG (odd), and its label."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < len(CLASSES))[index]
    pixels = np.round(digits.images[chosen] * 255 / 16).astype(np.uint8)
    image = Image.fromarray(pixels).resize((12, 12), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG" if index % 2 == 0 else "JPEG")
    return file.getvalue(), int(digits.target[chosen])


def write(name: str, features: dict, splits: dict[str, list[dict]], **options) -> None:
    shutil.rmtree(FIXTURES / name, ignore_errors=True)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={n: list(enumerate(rows)) for n, rows in splits.items()},
        data_dir=str(FIXTURES),
        **options,
    )


def main() -> None:
    image = tfds.features.Image(shape=(None, None, 3))
    digits = []
    for index in range(24):
        data, label = encoded(index)
        digits.append(
            {
                "image": io.BytesIO(data),
                "mask": np.full((1, 1, 1), index, np.uint8),
                "label": label,
            }
        )
    features = {
        "image": image,
        "mask": tfds.features.Image(shape=(1, 1, 1)),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    for name, file_format in (
        ("tiny_digits", "array_record"),
        ("tiny_tfrecord", "tfrecord"),
    ):
        for example in digits:
            example["image"].seek(0)
        splits = {"train": digits[:16], "test": digits[16:]}
        write(name, features, splits, file_format=file_format)

    tagged = []
    for index in range(6):
        data, label = encoded(index)
        tagged.append({"image": io.BytesIO(data), "tags": list(TAGS_OF[label])})
    tags = tfds.features.Sequence(tfds.features.ClassLabel(names=TAGS))
    write(
        "tiny_tags",
        {"image": image, "tags": tags},
        {"train": tagged},
        file_format="array_record",
    )


if __name__ == "__main__":
    main()
