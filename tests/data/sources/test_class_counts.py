"""Counts of the examples of each class, by kind of data set."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources.class_names import Relabelled
from vit_jax.data.sources.datasets import open_dataset

SETS = pathlib.Path(__file__).parents[2] / "fixtures" / "tfds"


def by_reading(source):
    """Counts by reading every example, as a reference."""
    counts = np.zeros(source.num_classes)
    for index in range(len(source)):
        label = source[index].label
        for k in label if isinstance(label, tuple) else (label,):
            counts[k] += 1
    return counts


@pytest.fixture
def table(tmp_path):
    rows = [
        "a.png,cat|dog,train",
        "b.png,dog,train",
        "c.png,dog,train",
        "d.png,cow,val",
    ]
    for name in "abcd":
        Image.new("L", (4, 4), ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.csv").write_text("\n".join(["path,labels,split", *rows]) + "\n")
    return str(tmp_path / "rows.csv")


@pytest.mark.parametrize("split", ["train", "train[:40%]"])
@pytest.mark.parametrize("name", ["digits", "multi", "single"])
def test_counts_are_those_of_the_examples(name, split, tmp_path):
    if name == "digits":
        path = name
    else:
        labels = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
        if name == "single":
            labels = np.array([2, 0, 2, 2, 1])
        path = str(tmp_path / "some.npz")
        images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
        np.savez(
            path,
            train_images=images,
            train_labels=labels,
            test_images=images + 1,
            test_labels=labels,
        )
    source = open_dataset(path).split(split)
    counts = source.class_counts()
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts, by_reading(source))


def test_counts_of_a_table_with_several_labels(table):
    dataset = open_dataset(table)
    source = dataset.split("train")
    counts = dict(zip(source.class_names, source.class_counts(), strict=True))
    assert counts == {"cat": 1, "cow": 0, "dog": 3}
    counts = dataset.split("train[:1]").class_counts()
    _, label = dataset.split("train[:1]").file(0)
    np.testing.assert_array_equal(np.flatnonzero(counts), label)
    outputs = [2, -1, 0]  # of cat, cow and dog
    relabelled = Relabelled(source, outputs, ("dog", "bird", "cat"), 3)
    np.testing.assert_array_equal(relabelled.class_counts(), [3, 0, 1])


@pytest.mark.parametrize("folder", ["tiny_digits", "tiny_tags"])
def test_counts_of_prepared_sets(folder):
    source = open_dataset(str(SETS / folder)).split("train")
    np.testing.assert_array_equal(source.class_counts(), by_reading(source))
