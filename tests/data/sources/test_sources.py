"""Tests of every kind of source: labels and weights without decoding images."""

import pathlib
import pickle

import numpy as np
import pytest

from vit_jax.data.sources import tfds_labels
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError

SETS = str(pathlib.Path(__file__).parents[2] / "fixtures" / "tfds")


@pytest.mark.parametrize("split", ["train", "test[2:]", "train[:5]+test", "test+train"])
@pytest.mark.parametrize("dataset", ["digits", f"{SETS}/tiny_digits"])
def test_labels_are_those_of_the_examples(dataset, split):
    source = open_dataset(dataset).split(split)
    labels = source.labels()
    assert labels.dtype == np.int32
    assert labels.tolist() == [source[i].label for i in range(len(source))]
    weights = source.weights()
    assert weights.dtype == np.float64
    assert weights.tolist() == [1.0] * len(source)
    assert source[0].weight == 1.0


def test_multiple_labels_cannot_be_sampled_by_class():
    source = open_dataset(f"{SETS}/tiny_tags").split("train")
    with pytest.raises(UserError, match=r"tiny_tags/train may have several labels"):
        source.labels()
    assert source.weights().tolist() == [1.0] * 6


@pytest.mark.parametrize("dataset", ["digits", f"{SETS}/tiny_digits"])
def test_sources_go_to_other_processes(dataset):
    source = open_dataset(dataset).split("train[3:]+test")
    there = pickle.loads(pickle.dumps(source))
    assert len(there) == len(source)
    assert there[20].label == source[20].label
    assert there[20].name == source[20].name


def test_indices_count_from_the_end_and_end():
    for dataset in ("digits", f"{SETS}/tiny_digits"):
        source = open_dataset(dataset).split("train+test")
        assert source[-1].label == source[len(source) - 1].label
        assert source[-1].name == source[len(source) - 1].name
        with pytest.raises(IndexError):
            source[len(source)]


def weighted(write_set, **options):
    import tensorflow_datasets as tfds

    features = {
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "example_weight": tfds.features.Scalar(np.float64),
    }
    examples = [{"label": k % 3, "example_weight": k / 4} for k in range(12)]
    return write_set(features, {"train": examples}, **options)


def test_weights_of_a_prepared_set(write_set):
    source = open_dataset(str(weighted(write_set))).split("train[2:]")
    assert source.weights().tolist() == [k / 4 for k in range(2, 12)]
    assert [source[i].weight for i in range(10)] == source.weights().tolist()
    assert source.labels().tolist() == [k % 3 for k in range(2, 12)]


def test_labels_are_read_once(write_set, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tfds_labels, "WORTH_KEEPING", 1)
    folder = weighted(write_set, shards=2)

    def labels():
        monkeypatch.setattr(tfds_labels, "_read", {})  # as if in a new process
        return open_dataset(str(folder)).split("train").labels().tolist()

    expected = labels()
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 1

    def never(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(tfds_labels, "_read_columns", never)
        assert labels() == expected
        shard = folder / "small-train.array_record-00001-of-00002"
        shard.write_bytes(shard.read_bytes() + b"x")
        with pytest.raises(AssertionError, match="read again"):
            labels()


def test_text_labels(write_set):
    import tensorflow_datasets as tfds

    splits = {
        "train": [{"label": name} for name in ("ox", "ant", "ox", "bee")],
        "test": [{"label": name} for name in ("bee", "ümlaut", "ox")],
    }
    folder = write_set({"label": tfds.features.Text()}, splits)
    test, train = map(open_dataset(str(folder)).split, ("test", "train"))
    assert train.class_names == test.class_names == ("ant", "bee", "ox", "ümlaut")
    assert train.labels().tolist() == [2, 0, 2, 1]
    assert [test[i].label for i in range(3)] == test.labels().tolist() == [1, 3, 2]


def test_numeric_texts_are_ordered_as_numbers(write_set):
    import tensorflow_datasets as tfds

    examples = [{"label": name} for name in ("10", "9", "100")]
    folder = write_set({"label": tfds.features.Text()}, {"train": examples})
    assert open_dataset(str(folder)).split("train").class_names == ("9", "10", "100")
