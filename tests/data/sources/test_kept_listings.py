"""Tests that a large folder is listed once, and again only after a change."""

import os
import shutil

import numpy as np
import pytest

from vit_jax.data.sources import kept_listings
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.folders import list_folder
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of the usual layout that has not changed for a while."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_listings, "WORTH_KEEPING", 1)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("a", "b\udcff", "c/deeper"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k}.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.jpg").touch()
    (tmp_path / "set" / "train" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    settle(tmp_path)
    return tmp_path / "set"


def settle(root):
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


@pytest.fixture
def listed(root, monkeypatch):
    """A function that lists the folder like a new process.

    Returns the listing, and how many directories were listed for it.
    """
    scandir, scanned = os.scandir, []

    def counted(folder):
        scanned.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)

    def listed():
        scanned.clear()
        listing = list_folder(str(root))
        return {split: list(files) for split, files in listing.files.items()}, len(
            scanned
        )

    return listed


def test_a_link_that_leads_nowhere_may_lead_somewhere_later(root, listed):
    (root / "train" / "late").symlink_to(root.parent / "later")
    settle(root)
    before, _ = listed()
    (root.parent / "later").mkdir()
    (root.parent / "later" / "0.jpg").touch()
    settle(root.parent)
    after, _ = listed()
    assert {path for path, _ in after["train"]} - {
        path for path, _ in before["train"]
    } == {"train/late/0.jpg"}


def test_second_start_lists_no_directory(root, listed):
    expected, scanned = listed()
    assert scanned >= 11
    assert len(expected["train"]) == 19
    assert listed() == (expected, 0)
    source = open_dataset(str(root)).split("val")
    assert source.class_names == ("a", "b\udcff", "c")
    assert source.labels().tolist() == [label for _, label in expected["val"]]
    assert source.weights().tolist() == [1.0] * 6


def test_what_was_left_out_and_said_is_kept(root, listed):
    for name in ("train/a/1.xyz", "train/.x.jpg", "test/0.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    settle(root)
    first = list_folder(str(root))
    assert listed()[1] == 0
    second = list_folder(str(root))
    assert second.left_out == first.left_out == {".xyz": 1, "hidden": 1}
    assert second.remarks == first.remarks != ()
    assert second.info.with_splits().num_examples == {"train": 19, "val": 6}
    for listing in (first, second):
        with pytest.raises(UserError, match="test has no folders of classes"):
            listing.split("test")


def test_a_listing_is_kept_for_its_options_only(root, listed):
    listed()
    other = list_folder(str(root), DataOptions(splits="train=train"))
    assert other.held_out
    assert sum(other.num_examples.values()) == 19
    assert not list_folder(str(root)).held_out


def test_evaluation_alone_is_kept(root, listed):
    shutil.rmtree(root / "train")
    settle(root)
    expected, scanned = listed()
    assert scanned > 0
    assert listed() == (expected, 0)
    assert list_folder(str(root)).train_split == ""


def test_only_directories_are_checked(root, listed, monkeypatch):
    listed()
    stat, asked = os.stat, []

    def counted(path, **options):
        asked.append(path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counted)
        listed()
    assert not [path for path in asked if str(path).endswith(".jpg")]


CHANGES = {
    "a new file": lambda root: (root / "train/c/deeper/new.jpg").touch(),
    "a file gone": lambda root: (root / "val/a/0.jpg").unlink(),
    "a file renamed": lambda root: (root / "val/a/0.jpg").rename(root / "val/a/x.jpg"),
    "a new folder": lambda root: (root / "train/d").mkdir(),
    "a folder gone": lambda root: shutil.rmtree(root / "train/c/deeper"),
    "behind a link": lambda root: (root / "../elsewhere/two.jpg").touch(),
    "a link elsewhere": lambda root: (
        (root / "train/a/link").unlink(),
        (root / "train/a/link").symlink_to(root / "val"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(root, listed, change):
    before, _ = listed()
    if change == "a folder gone":
        (root / "train/c/other.jpg").touch()  # otherwise a class would be missing
        settle(root)
    CHANGES[change](root)
    after, scanned = listed()
    assert scanned >= 10
    assert (after == before) == (change == "a new folder")


def test_recently_changed_folders_are_not_kept(root, listed):
    (root / "train/a/new.jpg").touch()
    listed()
    assert listed()[1] > 0
    settle(root)
    listed()
    assert listed()[1] == 0


def test_small_folders_are_not_kept(tmp_path, listed, monkeypatch):
    monkeypatch.setattr(kept_listings, "WORTH_KEEPING", 100)
    listed()
    assert not (tmp_path / "cache").exists()


def test_damaged_cache_is_ignored_and_rewritten(tmp_path, listed):
    expected, _ = listed()
    (file,) = (tmp_path / "cache" / "listings").iterdir()
    for damage in (b"", file.read_bytes()[:-50], b"x" * 1000):
        file.write_bytes(damage)
        assert listed()[0] == expected
        assert listed() == (expected, 0)
    with np.load(file) as kept:
        arrays = dict(kept)
    del arrays["val/labels"]
    np.savez(file, **arrays)
    assert listed()[0] == expected
    assert listed() == (expected, 0)


def test_unwritable_cache_only_costs_time(tmp_path, listed):
    (tmp_path / "cache").write_text("no folder")
    expected, _ = listed()
    again, scanned = listed()
    assert again == expected
    assert scanned >= 11
