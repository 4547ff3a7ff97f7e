"""Folders of IDX files: MNIST's names and their variants, contents, and errors."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from vit_jax.data.sources.array_files import idx
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = {count: RNG.integers(0, 256, (count, 5, 4), np.uint8) for count in (12, 6)}
_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array):
    code = _CODES[array.dtype.str[1:]]
    sizes = struct.pack(f">{array.ndim}i", *array.shape)
    return (
        bytes((0, 0, code, array.ndim))
        + sizes
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def save(folder, name, array):
    folder.mkdir(exist_ok=True)
    data = idx_bytes(array)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)


def save_set(folder, ending="-ubyte.gz", test="t10k", sign="-", first=""):
    for split, count in (("train", 12), (test, 6)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images, name = IMAGES[count], f"{first}{split}"
        save(folder, f"{name}-images{sign}idx3{ending}", images)
        save(folder, f"{name}-labels{sign}idx1{ending}", labels)
    return str(folder)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"ending": "-ubyte"},
        {"ending": "-ubyte", "sign": "."},
        {"test": "test", "first": "emnist-letters-"},
    ],
)
def test_images_and_labels_of_both_splits(tmp_path, form):
    data = open_dataset(save_set(tmp_path / "set", **form))
    info = data.info
    assert data.kind == "arrays"
    assert info.class_names == ("0", "1", "2")
    assert (info.train_split, info.eval_split) == ("train", "test")
    assert info.num_examples == {"train": 12, "test": 6}
    for split, count in info.num_examples.items():
        seen = set()
        for example in pickle.loads(pickle.dumps(data.split(split))):
            row = int(example.name.rsplit("[", 1)[1][:-1])
            np.testing.assert_array_equal(example.image, IMAGES[count][row][:, :, None])
            assert example.label == row % 3
            seen.add(row)
        assert len(seen) == count


def test_one_file_means_its_folder(tmp_path):
    folder = save_set(tmp_path / "set")
    data = open_dataset(f"{folder}/train-images-idx3-ubyte.gz")
    assert data.location == folder


def test_a_compressed_copy_beside_a_file_is_the_same(tmp_path):
    folder = save_set(tmp_path / "set", ending="-ubyte")
    save_set(tmp_path / "set")
    assert open_dataset(folder).info.num_examples["train"] == 12
    assert all(path.endswith("-ubyte") for path in idx.find(folder).values())


def test_a_part_is_held_out_where_there_is_only_one_split(tmp_path):
    folder = save_set(tmp_path / "set")
    for file in (tmp_path / "set").glob("t10k*"):
        file.unlink()
    info = open_dataset(folder).info
    assert info.held_out
    assert sum(info.num_examples.values()) == 12


def test_larger_numbers_are_big_endian(tmp_path):
    save(tmp_path / "set", "train-labels-idx1-ubyte", np.array([1, 300], np.int32))
    labels = idx.read(str(tmp_path / "set"), "train_labels")
    assert labels.tolist() == [1, 300]
    assert labels.dtype.isnative


def test_class_names_are_known_by_the_labels(tmp_path, monkeypatch):
    folder = save_set(tmp_path / "set")
    checksum = idx.checksums(folder)["train_labels"]
    monkeypatch.setitem(idx._KNOWN_LABELS, checksum, ("shirt", "bag", "boot"))
    assert open_dataset(folder).info.class_names == ("shirt", "bag", "boot")


def test_the_fingerprint_is_that_of_the_values(tmp_path):
    packed = open_dataset(save_set(tmp_path / "packed"))
    plain = open_dataset(save_set(tmp_path / "plain", ending="-ubyte"))
    prints = packed.split("train").fingerprint()
    assert plain.split("train").fingerprint() == prints
    save(tmp_path / "plain", "train-images-idx3-ubyte", IMAGES[12][::-1])
    other = open_dataset(str(tmp_path / "plain")).split("train").fingerprint()
    assert other["images"] != prints["images"]


def message(folder):
    with pytest.raises(UserError) as error:
        open_dataset(str(folder)).info.with_splits()
    return str(error.value)


def test_other_contents_are_refused_by_what_they_are(tmp_path):
    folder = tmp_path / "set"
    save_set(folder, ending="-ubyte")
    whole = (folder / "train-labels-idx1-ubyte").read_bytes()

    def found(data):
        (folder / "train-labels-idx1-ubyte").write_bytes(data)
        return message(folder)

    assert "begins with b'PK" in found(b"PK\3\4" + whole)
    assert "ends within its header" in found(whole[:6])
    assert "12 bytes, but it has only 11" in found(whole[:-1])
    assert "12 bytes, but it has more" in found(whole + b"\0")
    (folder / "train-labels-idx1-ubyte").unlink()
    assert "train_images has no train_labels beside it" in message(folder)
    save(folder, "train-images-idx3-ubyte", IMAGES[12].astype(np.float32))
    assert "expected uint8" in message(folder)


def test_a_damaged_compressed_file_is_refused(tmp_path):
    folder = tmp_path / "set"
    save_set(folder)
    file = folder / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    assert "cannot be read" in message(folder)


def test_several_sets_in_a_folder_are_refused(tmp_path):
    save_set(tmp_path / "set", test="test", first="emnist-letters-")
    save_set(tmp_path / "set", test="test", first="emnist-digits-")
    assert "holds several sets of IDX files" in message(tmp_path / "set")


def test_folders_of_classes_beside_the_files_are_mentioned(tmp_path, caplog):
    folder = tmp_path / "set"
    save_set(folder)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "1.png").touch()
    assert open_dataset(str(folder)).info.num_classes == 3
    assert "data.kind='image folder' takes the folders instead" in caplog.text
