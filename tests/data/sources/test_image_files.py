"""Tests of the walk through folders: images, links, and what is left out by reason."""

import contextlib
import os

import pytest

from vit_jax.data.sources.image_files import (
    HIDDEN,
    LOOPS,
    LOST,
    NO_ENDING,
    SIDE_FILES,
    SPECIAL,
    Walker,
    find_images,
    in_words,
)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_every_entry_is_an_image_or_counted(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "deep/er/c.webp")
    touch(tmp_path, "1.mov", "2.MOV", "notes.txt", "README", "old.png~")
    touch(tmp_path, ".hidden.jpg", ".git/x.png")
    touch(tmp_path, "Thumbs.db", "desktop.ini", ".DS_Store", "._a.png")
    touch(tmp_path, "@eaDir/a.jpg", "__MACOSX/a.png", "lost+found/x.png")
    touch(
        tmp_path, "deep/.ipynb_checkpoints/c-checkpoint.png", "deep/$RECYCLE.BIN/y.jpg"
    )
    touch(tmp_path, "SYNOPHOTO_THUMB_M.jpg", "#recycle/z.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_images(tmp_path)
    assert found.images == ["a.png", "b.JPG", "deep/er/c.webp"]
    assert found.left_out == {
        ".mov": 2,
        ".txt": 1,
        NO_ENDING: 1,
        ".png~": 1,
        HIDDEN: 2,
        SIDE_FILES: 11,
        SPECIAL: 1,
    }
    assert in_words({".txt": 1, ".mov": 1200, HIDDEN: 1}) == (
        "1,200 × .mov, 1 × .txt, 1 × hidden"
    )


@pytest.mark.parametrize(
    "name", ["thumbs", "trash", "icons", "snapshot", "#1", "@home"]
)
def test_usual_names_are_not_taken_for_side_files(tmp_path, name):
    touch(tmp_path, f"{name}/a.png")
    assert find_images(tmp_path).images == [f"{name}/a.png"]


def test_links_are_followed_but_no_loops(tmp_path):
    touch(tmp_path, "set/cats/a.png", "set/cats2/b.png", "elsewhere/c.png")
    (tmp_path / "set/cats2/cats").symlink_to(tmp_path / "set/cats")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/loop").symlink_to(tmp_path)
    (tmp_path / "set/cats/up").symlink_to("../cats2")  # cats2/cats/up is a loop
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "set/gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "set/itself").symlink_to("itself")
    found = find_images(tmp_path / "set")
    assert found.images == [
        "cats/a.png",
        "cats/up/b.png",
        "cats2/b.png",
        "cats2/cats/a.png",
        "gone.png",  # a missing image, which reading it reports
        "linked/c.png",
    ]
    assert found.left_out == {LOOPS: 3, LOST: 2}


def test_a_link_that_leads_nowhere_costs_no_other_image(tmp_path):
    touch(tmp_path, "set/a.png", "set/below/b.png")
    (tmp_path / "set" / "itself.png").symlink_to("itself.png")
    (tmp_path / "set" / "absent.png").symlink_to("nowhere.png")
    (tmp_path / "set" / "file.png").symlink_to("a.png/x.png")
    # They stay, as images that cannot be read.
    images = ["a.png", "absent.png", "below/b.png", "file.png", "itself.png"]
    assert find_images(tmp_path / "set") == (images, {})


def test_a_link_to_where_nobody_may_look_is_not_left_out(tmp_path, monkeypatch):
    class Entry:
        def __init__(self, name):
            self.name, self.path = name, f"set/{name}"

        def __fspath__(self):
            return self.path

        def is_dir(self):
            raise PermissionError

        def is_symlink(self):
            return True

    entries = contextlib.nullcontext([Entry("link"), Entry("link.png")])
    monkeypatch.setattr(os, "scandir", lambda _: entries)
    # What it leads to is unknown: listing it, or reading it, says why.
    assert Walker().scan(str(tmp_path)) == (["link"], ["link.png"], {})


def test_the_first_rules_find_what_they_found(tmp_path):
    touch(tmp_path, "a.png", "@eaDir/a.jpg", ".hidden.jpg", "cats/b.gif", "cats2/c.tif")
    # The target's path begins like the folder's, which the first rules took for a loop.
    (tmp_path / "cats2/cats").symlink_to(tmp_path / "cats")
    found = find_images(tmp_path, rules=1)
    assert found.images == ["@eaDir/a.jpg", "a.png", "cats/b.gif", "cats2/c.tif"]
