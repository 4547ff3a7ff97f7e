"""Tests of array files: naming schemes, permitted contents, and errors."""

import gc
import io
import pickle
import tracemalloc
import weakref
import zipfile

import numpy as np
import pytest

from vit_jax.archives import zips
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.array_files import arrays, npz
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)


def images(count, *shape):
    """Makes images; the first pixel of image k is k."""
    pixels = RNG.integers(0, 256, (count, *(shape or (5, 4, 3))), np.uint8)
    pixels.reshape(count, -1)[:, 0] = np.arange(count)
    return pixels


def labels(count, classes=3):
    return np.arange(count) % classes


@pytest.fixture
def save(tmp_path):
    def save(compressed=False, **arrays):
        path = tmp_path / "set.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return str(path)

    return save


def message(path) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(path)).info.with_splits()
    return str(error.value)


def check(source, array, expected_labels, expected_weights=None):
    """Asserts that every example is the row in its name, with that row's label."""
    rows = []
    for example in source:
        row = int(example.name.rsplit("[", 1)[1][:-1])
        rows.append(row)
        expected = array[row]
        expected = expected if expected.ndim == 3 else expected[:, :, None]
        np.testing.assert_array_equal(example.image, expected)
        assert example.label == np.ravel(expected_labels)[row]
        if expected_weights is not None:
            assert example.weight == expected_weights[row]
    assert len(set(rows)) == len(rows) == len(source)
    assert source.labels().tolist() == [one.label for one in source]
    assert source.labels().dtype == np.int32
    assert source.weights().tolist() == [one.weight for one in source]
    return rows


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels(save, compressed):
    given = {
        "images": images(100),
        "labels": labels(100),
        "weights": np.arange(100) / 8,
    }
    path = save(compressed, **given)
    dataset = open_dataset(path)
    info = dataset.info.with_splits()
    assert (info.train_split, info.eval_split) == ("train", "val")
    assert info.class_names == ("0", "1", "2")
    assert sum(info.num_examples.values()) == 100
    assert 3 <= info.num_examples["val"] <= 20
    sides = [check(dataset.split(split), *given.values()) for split in ("train", "val")]
    assert sorted(sides[0] + sides[1]) == list(range(100))
    assert dataset.split("val")[0].name == f"{path}/images[{sides[1][0]}]"
    # Appending examples changes neither the order nor the sides of others.
    given = {"images": images(120), "labels": labels(120)}
    more = check(open_dataset(save(**given)).split("val"), *given.values())
    assert [row for row in more if row < 100] == sides[1]


@pytest.mark.parametrize("evaluation", ["val", "validation", "test"])
def test_medmnist_names(save, evaluation):
    given = {
        "train_images": images(9, 6, 6),
        "train_labels": labels(9)[:, None].astype(np.uint8),
        f"{evaluation}_images": images(5, 6, 6),
        f"{evaluation}_labels": labels(5)[:, None].astype(np.uint8),
        f"{evaluation}_weights": np.arange(5),
        "class_names": np.array(["ant", "bee", "cow"]),
        "more": np.zeros(7),
    }
    path = save(**given)
    dataset = open_dataset(path)
    info = dataset.info.with_splits()
    assert info.num_examples == {"train": 9, evaluation: 5}
    assert info.class_names == ("ant", "bee", "cow")
    test = dataset.split(evaluation)
    check(test, *list(given.values())[2:5])
    assert test[0].image.shape == (6, 6, 1)
    check(dataset.split(), *list(given.values())[:2])
    assert len(dataset.split(f"train[:4]+{evaluation}")) == 9


def test_keras_names(save):
    given = [images(9), labels(9)[:, None], images(4), labels(4)]
    names = ("x_train", "y_train", "x_test", "y_test")
    path = save(**dict(zip(names, given, strict=True)))
    dataset = open_dataset(path)
    assert (dataset.info.train_split, dataset.info.eval_split) == ("train", "test")
    check(dataset.split("train"), *given[:2])
    check(dataset.split("test"), *given[2:])


def test_zeros_and_ones_are_multiple_labels(save):
    several = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]] * 20)
    for kind in (np.uint8, bool, np.int64):
        path = save(images=images(60), labels=several.astype(kind))
        dataset = open_dataset(path)
        assert dataset.info.multi_label
        assert dataset.info.num_classes == 3
        source = dataset.split("train+val")
        with pytest.raises(UserError, match="may have several labels"):
            source.labels()
        for example in source:
            row = int(example.name.rsplit("[", 1)[1][:-1])
            assert example.label == ((1, 2), (), (0,))[row % 3]
        preprocessing = Preprocessing((4, 4))
        with eval_batches(
            source, batch_size=60, preprocessing=preprocessing
        ) as batches:
            np.testing.assert_array_equal(next(batches)["label"].sum(0), [20, 20, 20])


def test_images_are_held_once_and_released(save, monkeypatch):
    monkeypatch.setattr(arrays, "_held", weakref.WeakValueDictionary())
    path = save(images=images(50), labels=labels(50))
    dataset = open_dataset(path)
    assert dataset.info.num_classes == 3
    assert not arrays._held
    train, val = (dataset.split(split) for split in ("train", "val"))
    assert len(arrays._held) == 1
    assert np.shares_memory(*(next(iter(one._images.values())) for one in (train, val)))
    with pytest.raises(ValueError, match="read-only"):
        train[0].image[:] = 0
    del train, val
    gc.collect()
    assert not arrays._held


def test_pickled_source_reads_the_file_again(save):
    path = save(images=images(50, 64, 64, 3), labels=labels(50))
    source = open_dataset(path).split("val")
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[1].image, source[1].image)


def test_all_problems_are_listed(save):
    found = message(
        save(
            train_images=images(5).astype(np.float32),
            train_labels=labels(4).astype(np.float64),
            val_images=images(5, 3, 8, 8),
            val_labels=np.zeros((5, 2, 2), int),
            test_images=images(5, 8),
            test_labels=labels(5),
            test_weights=np.ones(3),
        )
    )
    for problem in (
        "train_images is float32 [5, 5, 4, 3]: expected uint8",
        "train_labels is float64 [4]: expected whole numbers",
        "train_labels is float64 [4], but train_images is float32 [5, 5, 4, 3]",
        "val_images is uint8 [5, 3, 8, 8]: its channels must come last",
        "val_labels is int64 [5, 2, 2]: expected [n], [n, 1] or [n, classes]",
        "test_images is uint8 [5, 8]: expected [n, h, w] or [n, h, w, c]",
        "test_weights is float64 [3], but test_images is uint8 [5, 8]",
    ):
        assert f"\n  {problem}" in found
    assert "Expected images and labels" in found
    found = message(
        save(
            images=images(6),
            labels=np.array([0, -1, 2, 1, -5, 0]),
            weights=np.array([1, np.nan, 1, -1, 1, 1]),
            class_names=np.array(["a", "a"]),
        )
    )
    for problem in (
        "labels: 2 values, the first in row 1, are not at least 0",
        "weights: 2 values, the first nan in row 1, are not numbers of at least 0",
        "class_names: only 1 of 2 names are distinct",
        "class_names: 2 names for 3 classes",
    ):
        assert f"\n  {problem}" in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": np.array([0, 1, 10**9, 0, 1, 1])}, "labels go up to 1,000,000,000"),
        ({"labels": np.zeros(6, int)}, "found one class"),
        (
            {"labels": np.full((6, 2), 2)},
            "12 values, the first in row 0, are not 0 or 1",
        ),
        ({"labels": np.eye(6)}, "labels is float64 [6, 6]: expected whole numbers"),
        ({"labels": np.ones(6, bool)}, "labels is bool [6]: expected whole numbers"),
        ({"labels": None}, "images has no labels beside it"),
        (
            {"weights": np.ones((6, 1))},
            "weights is float64 [6, 1]: expected numbers [n]",
        ),
        ({"class_names": np.arange(3)}, "class_names is int64 [3]: expected strings"),
        (
            {"images": np.zeros((0, 4, 4), np.uint8), "labels": []},
            "[0, 4, 4]: expected",
        ),
        ({"images": None}, "has no images; found labels int64 [6]. Expected images"),
        ({"x_train": images(6)}, "has images in several layouts"),
    ],
)
def test_refused_arrays(save, changes, problem):
    given = {"images": images(6), "labels": labels(6)} | changes
    given = {name: array for name, array in given.items() if array is not None}
    assert problem in message(save(**given))


def test_splits_must_agree(save):
    given = {"train_images": images(6), "train_labels": labels(6)}
    given |= {"val_images": images(6), "val_labels": np.eye(6, 3, dtype=int)}
    assert "different numbers of columns in different splits" in message(save(**given))


def test_nothing_is_unpickled(save):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    objects = np.array([Trap()] * 6, object)
    found = message(save(images=images(6), labels=objects, class_names=objects))
    assert "labels holds Python objects, which are never unpickled" in found
    assert "class_names holds Python objects" in found


def test_claimed_sizes_must_match_the_file(tmp_path, save, monkeypatch):
    path = tmp_path / "bomb.npz"

    def write(shape, body=b""):
        header = io.BytesIO()
        fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", header.getvalue() + body)
        return message(path)

    def never(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(zips, "aligned_bytes", never)
    assert "images is uint8 [9999999, 9999, 9999], but" in write((9999999, 9999, 9999))
    assert "another size" in write((10, 10, 10), b"x" * 999)
    assert "[-10, -10, 10], but" in write((-10, -10, 10), b"x" * 1000)
    # The directory claims more than deflate can make of the compressed bytes.
    write((100, 100, 100), bytes(1_000_000))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 20
    data[at : at + 4] = (200).to_bytes(4, "little")
    path.write_bytes(data)
    expected = "images is uint8 [100, 100, 100], which its compressed data cannot hold"
    assert expected in message(path)
    monkeypatch.setattr(npz, "physical_bytes", lambda: 500)
    assert "images needs 0.0 GB of memory" in write((10, 10, 10), b"x" * 1000)


@pytest.mark.parametrize("compressed", [False, True])
def test_describing_a_file_reads_no_images(save, compressed):
    pixels = RNG.integers(0, 256, (100, 200, 200, 2), np.uint8)  # 8 MB
    open_dataset(
        save(images=images(60), labels=labels(60))
    )  # so that imports do not count
    path = save(compressed, images=pixels, labels=labels(100))
    tracemalloc.start()
    dataset = open_dataset(path)
    assert sum(dataset.info.num_examples.values()) == 100
    described = tracemalloc.get_traced_memory()[1]
    source = dataset.split("train")
    opened = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert described < 1_000_000
    assert opened < 9_000_000  # the images once, and nothing else
    assert len(source) > 80


def test_highly_compressed_images_are_read(save):
    path = save(True, images=np.zeros((40, 1024, 1024), np.uint8), labels=labels(40))
    assert not open_dataset(path).split("val")[0].image.any()


def test_unsafe_archives_are_refused(tmp_path, save):
    path = tmp_path / "set.npz"
    save(images=images(6), labels=labels(6))
    good = path.read_bytes()
    flags = good.index(b"PK\1\2") + 8
    path.write_bytes(good[:flags] + b"\1" + good[flags + 1 :])
    found = message(path)
    assert (
        "set.npz cannot be read: 'images.npy' is encrypted. Unpack the archive and"
        in found
    )
    version = good.index(b"PK\1\2") + 6
    path.write_bytes(good[:version] + b"\xff" + good[version + 1 :])
    assert "set.npz cannot be read: zip file version 25.5" in message(path)
    path.write_bytes(good)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(path, "a") as archive,
    ):
        archive.writestr("images.npy", b"")
    found = message(path)
    assert "cannot be read: it holds more than once: 'images.npy'. Copy or w" in found
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(1100):
            archive.writestr(f"{k:0>1000}.npy", b"")
    assert "cannot be read: a directory of 1,1" in message(path)


def test_file_that_changes_after_its_headers_is_refused(save):
    path = save(images=images(6), labels=labels(6))
    assert npz.headers(path)["labels"].shape == (6,)
    for changed in ({"images": images(6)}, {"labels": np.array([{}], object)}):
        save(**changed)
        with pytest.raises(UserError, match=r"set\.npz cannot be read: .*labels.* h"):
            npz.read(path, "labels")


def test_damaged_files(tmp_path, save):
    assert "gone.npz cannot be read: No such file" in message(tmp_path / "gone.npz")
    path = tmp_path / "set.npz"
    for data in (b"", b"no archive", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        assert "set.npz cannot be read: File is not a zip file" in message(path)
    save(compressed=True, images=images(40), labels=labels(40))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "set.npz cannot be read" in message(path)
    for position in range(60, len(data), len(data) // 40):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            source = open_dataset(str(path)).split("train")
            assert source[0].image.shape == (5, 4, 3)
        except UserError as error:
            assert "set.npz" in str(error)  # noqa: PT017
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"x" * 100)
    assert "images: the magic string is not correct" in message(path)


def test_changed_file_is_read_again(save):
    path = save(images=images(9), labels=labels(9))
    assert open_dataset(path).info.num_classes == 3
    save(images=images(60), labels=labels(60, 6))
    assert open_dataset(path).info.num_classes == 6


def test_images_and_labels_come_from_the_same_file(save):
    dataset = open_dataset(save(images=images(9), labels=labels(9)))
    assert dataset.info.num_classes == 3
    save(images=images(60), labels=labels(60, 6))
    with pytest.raises(UserError, match=r"set.npz was written again after its labels"):
        dataset.split("train")


def test_what_is_held_out_is_said(save, caplog):
    path = save(images=images(41), labels=np.array([*range(10)] * 4 + [10]))
    dataset = open_dataset(path)
    counts = np.bincount(dataset.split("val").labels(), minlength=11)
    assert counts.tolist() == [1] * 10 + [0]
    assert dataset.contents.remarks == (
        "there is no split for evaluation: 10 of 41 images are held out for it "
        "(data.hold_out=0.1)",
        "1 class(es) without a held-out example: '10'",
    )
    assert "10 of 41 images are held out" in caplog.text


def test_unlabelled_images_for_testing_are_no_obstacle(save):
    given = {"train_images": images(6), "train_labels": labels(6)}
    test = {"test_images": images(4)}
    dataset = open_dataset(
        save(**given, **test, val_images=images(3), val_labels=labels(3))
    )
    assert dataset.info.with_splits().num_examples == {"train": 6, "val": 3}
    assert dataset.contents.remarks == (
        "test_images has no test_labels beside it: not used",
    )
    with pytest.raises(UserError, match="test_images has no test_labels beside it"):
        dataset.split("test")
    info = open_dataset(save(**given, **test)).info
    assert (info.held_out, *info.num_examples) == (True, "train", "val")
    found = message(save(**given, val_images=images(3)))
    assert "val_images has no val_labels beside it" in found
