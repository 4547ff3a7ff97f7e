"""Fingerprints of sources: the same wherever the data are, another for other data."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.hashing import digest
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.listings import Ragged

SETS = pathlib.Path(__file__).parents[2] / "fixtures" / "tfds"


def write_images(root, names="ab", count=3):
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.new("L", (4, 4), 9 * k).save(root / name / f"{k}.png")
    return root


def write_table(root, rows):
    write_images(root)
    (root / "rows.csv").write_text("\n".join(["path,label,weight,split", *rows]))
    return root / "rows.csv"


def fingerprint(path, split="train"):
    return open_dataset(str(path)).split(split).fingerprint()


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_digests_depend_on_every_value():
    values = [
        digest(),
        digest(""),
        digest("ab", "c"),
        digest("a", "bc"),
        digest("\udcff"),
        digest(np.array([1, 2], np.int32)),
        digest(np.array([2, 1], np.int32)),
        digest(np.array([1, 2], np.int64)),
        digest(np.array([1.0, 2.0])),
        digest(np.array([[1, 2]], np.int32)),
        digest(np.array([1], np.int32), np.array([2], np.int32)),
        digest(np.zeros(0, np.int32)),
    ]
    assert len(set(values)) == len(values)
    assert all(len(value) == 32 for value in values)
    one = np.array([1, 2], np.int32)
    assert digest(one.astype(">i4")) == digest(one)
    strided = np.array([1, 0, 2], np.int32)[::2]
    assert digest(strided) == digest(one)


def test_a_slice_of_a_ragged_sequence():
    ragged = Ragged.of([[1, 2], [], [3], [4, 5, 6]], np.int32)
    flat, lengths = ragged.part(slice(1, 3))
    assert (flat.tolist(), lengths.tolist()) == ([3], [0, 1])


def test_a_folder_elsewhere_has_the_same_fingerprint(tmp_path):
    folder = write_images(tmp_path / "1234/flowers", count=20)
    before = {split: fingerprint(folder, split) for split in ("train", "val")}
    assert before["train"] != before["val"]
    moved = tmp_path / "5678"
    shutil.copytree(folder.parent, moved)
    for split, known in before.items():
        assert fingerprint(moved / "flowers", split) == known
    assert fingerprint(moved / "flowers", "train[:50%]") != before["train"]
    first = next((moved / "flowers/a").iterdir())
    first.rename(first.with_name("another.png"))
    after = {split: fingerprint(moved / "flowers", split) for split in before}
    assert "paths" in changed(before["train"], after["train"]) | changed(
        before["val"], after["val"]
    )


def test_paths_labels_and_weights_of_a_table_are_told_apart(tmp_path):
    def of(name, *rows):
        rows = [f"{row},train" for row in rows] + ["b/2.png,b,1,val"]
        return fingerprint(write_table(tmp_path / name, rows))

    before = of("before", "a/0.png,a,1", "a/1.png,b,2")
    assert of("same", "a/1.png,b,2", "a/0.png,a,1") == before  # order does not matter
    assert changed(before, of("label", "a/0.png,b,1", "a/1.png,a,2")) == {"labels"}
    assert changed(before, of("weight", "a/0.png,a,1", "a/1.png,b,3")) == {"weights"}
    assert changed(before, of("path", "a/0.png,a,1", "a/2.png,b,2")) >= {"paths"}


def test_arrays_are_recognised_by_the_sums_of_the_file(tmp_path):
    images = (np.arange(40 * 9) % 251).astype(np.uint8).reshape(40, 3, 3)
    labels = np.arange(40) % 2

    def of(name, save=np.savez, **arrays):
        save(tmp_path / name, **{"images": images, "labels": labels} | arrays)
        return fingerprint(tmp_path / name)

    before = of("a.npz")
    assert of("b.npz", np.savez_compressed) == before
    assert changed(before, of("c.npz", images=images[::-1])) == {"images"}
    assert changed(before, of("d.npz", labels=1 - labels)) == {"labels"}
    assert changed(before, of("e.npz", weights=np.full(40, 2.0))) == {"weights"}


def test_a_prepared_set_is_recognised_by_its_version_and_shards(tmp_path):
    folder = SETS / "tiny_digits"
    shutil.copytree(folder, tmp_path / "tiny_digits")
    before = open_dataset("tiny_digits", str(SETS)).split("train").fingerprint()
    moved = open_dataset("tiny_digits", str(tmp_path)).split("train").fingerprint()
    assert moved == before
    assert fingerprint(tmp_path / "tiny_digits") == before
    assert fingerprint(tmp_path / "tiny_digits", "train[:3]") != before


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_embedded_set_has_a_fingerprint(split):
    assert fingerprint("digits", split) == fingerprint("digits", split)
    assert fingerprint("digits", split) != fingerprint("digits", f"{split}[:99]")
