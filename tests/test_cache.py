"""The cache for things that can be made again: its location and its robustness."""

import os

import numpy as np
import pytest

from vit_jax import cache
from vit_jax.cache import cache_dir, load_arrays, store_arrays

ARRAYS = {"labels": np.arange(5000, dtype=np.int32), "names": np.array(["a", "é"])}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_location_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", "~/weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "weights"
    monkeypatch.delenv("VIT_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert str(cache_dir()) == "/var/cache/vit_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "vit_jax"


def test_arrays_come_back_as_they_were(folder):
    assert load_arrays("labels/1.npz") is None
    store_arrays("labels/1.npz", ARRAYS)
    found = load_arrays("labels/1.npz")
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [path.name for path in (folder / "labels").iterdir()] == ["1.npz"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "folder"])
def test_a_damaged_file_counts_as_missing(folder, damage):
    store_arrays("a.npz", ARRAYS)
    path = folder / "a.npz"
    data = path.read_bytes()
    if damage == "flip":
        data = data[:9000] + bytes([data[9000] ^ 1]) + data[9001:]
    kept = {"cut": data[:-100], "empty": b"", "other": b"x" * 99}
    path.write_bytes(kept.get(damage, data))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    assert load_arrays("a.npz") is None
    store_arrays("a.npz", ARRAYS)
    assert (load_arrays("a.npz") is None) == (damage == "folder")


def test_nothing_is_unpickled(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", labels=np.array([{"a": 1}], object))
    assert load_arrays("a.npz") is None


def test_an_unwritable_cache_is_not_an_error(folder, monkeypatch):
    folder.write_text("a file where the folder should be")
    store_arrays("a.npz", ARRAYS)
    assert load_arrays("a.npz") is None
    folder.unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_npz", full)
    store_arrays("a.npz", ARRAYS)
    assert os.listdir(folder) == []
