"""Tests of writing folders and tables as prepared sets, read without TensorFlow."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.preparing import record_writer, shards
from vit_jax.data.preparing.record_writer import VERSION, set_name, write_set
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.folders import list_folder
from vit_jax.data.sources.tables.reading import read_tables
from vit_jax.errors import UserError

SHARD = 3_000  # bytes, or six images


@pytest.fixture
def root(tmp_path):
    """A folder of thirty files of at least 500 bytes, in three classes."""
    rng = np.random.default_rng(0)
    for k in range(30):
        path = tmp_path / "photos" / ("zoo", "ant", "Über 2")[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def write(root, data_dir, **options):
    options = {"shard_bytes": SHARD, **options}
    return write_set(list_folder(str(root)), "photos", str(data_dir), **options)


def check_equal(written, original, left_out=()):
    """Asserts that all examples are equal and in the same order."""
    copy, source = open_dataset(str(written)), open_dataset(str(original))
    info, expected = copy.info.with_splits(), source.info.with_splits()
    assert info.class_names == expected.class_names
    assert info.multi_label == expected.multi_label
    assert (info.train_split, info.eval_split) == ("train", expected.eval_split)
    for split in expected.num_examples:
        ours, theirs = copy.split(split), source.split(split)
        kept = [one for one in theirs.listing.files[split] if one[0] not in left_out]
        assert len(ours) == len(kept)
        for example, (path, label) in zip(ours, kept, strict=True):
            file = pathlib.Path(theirs.listing.path, path)
            assert example.image == file.read_bytes()
            assert example.label == label


def test_folder_round_trip(root, tmp_path):
    written = write(root, tmp_path / "sets")
    assert written.folder == str(tmp_path / "sets" / "photos" / VERSION)
    assert written.left_out == []
    assert sum(written.num_examples.values()) == 30
    check_equal(written.folder, root)
    check_equal(tmp_path / "sets" / "photos", root)
    info = open_dataset("photos", str(tmp_path / "sets")).info.with_splits()
    assert info.class_names == ("ant", "zoo", "Über 2")
    files = sorted(path.name for path in pathlib.Path(written.folder).iterdir())
    assert files[:3] == ["dataset_info.json", "features.json", "label.labels.txt"]
    assert files[-1] == "prepared_from.json"
    of_split = [name for name in files if name.startswith("photos-train")]
    assert len(of_split) >= 4
    assert of_split[0] == f"photos-train.array_record-00000-of-{len(of_split):05d}"
    assert "tensorflow" not in sys.modules


def test_tensorflow_datasets_reads_the_set(root, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(write(root, tmp_path / "sets").folder)
    assert builder.info.full_name == "photos/1.0.0"
    assert builder.info.features["label"].names == ["ant", "zoo", "Über 2"]
    records = builder.as_data_source("train")
    source = open_dataset(str(root)).split("train")
    assert len(records) == len(source)
    for record, example in zip(records, source, strict=True):
        assert record["image"].shape == (12, 12, 3)
        assert record["label"] == example.label
    assert builder.info.splits["train"].num_bytes > sum(len(x.image) for x in source)


def test_tables_with_weights_and_multiple_labels(root, tmp_path):
    for column, labels in (("label", ["a", "b"]), ("labels", ["a|b", "", "b|c|a"])):
        table = tmp_path / f"{column}.csv"
        rows = [
            f"photos/{path.parent.name}/{path.name},{labels[k % len(labels)]},{k / 4}"
            for k, path in enumerate(sorted(root.glob("*/*")))
        ]
        table.write_text("\n".join([f"image,{column},weight", *rows]), encoding="utf-8")
        listing = read_tables(str(table))
        written = write_set(listing, column, str(tmp_path / "sets"), shard_bytes=SHARD)
        check_equal(written.folder, table)
        for split in ("train", "val"):
            ours, theirs = (
                open_dataset(str(x)).split(split) for x in (written.folder, table)
            )
            assert ours.weights().tolist() == theirs.weights().tolist()
            assert [one.weight for one in ours] == theirs.weights().tolist()


def test_splits_keep_their_names(root, tmp_path):
    for split in ("test", "val", "train"):
        shutil.copytree(root, tmp_path / "split" / split)
    written = write_set(
        list_folder(str(tmp_path / "split")), "split", str(tmp_path / "sets")
    )
    assert written.num_examples == {"train": 30, "val": 30, "test": 30}
    check_equal(written.folder, tmp_path / "split")


def bad_files(root):
    files = [root / "ant" / "1.png", root / "zoo" / "3.png", root / "zoo" / "0.png"]
    files[0].write_bytes(files[0].read_bytes()[:300])
    files[1].write_bytes(b"")
    files[2].unlink()
    files[2].symlink_to("nowhere")
    return [str(path.relative_to(root)) for path in files]


def test_unreadable_images_are_left_out_and_listed(root, tmp_path):
    bad = bad_files(root)
    written = write(root, tmp_path / "sets", max_bad_share=0.1)
    assert sum(written.num_examples.values()) == 27
    check_equal(written.folder, root, bad)
    for path in bad:
        assert any(one.startswith(str(root / path)) for one in written.left_out)
    assert len(written.left_out) == 3


def test_too_many_unreadable_images_are_an_error_until_allowed(root, tmp_path):
    bad = bad_files(root)
    with pytest.raises(UserError) as error:
        write(root, tmp_path / "sets", max_bad_share=0.09)
    found = str(error.value)
    assert (
        "3 of 30 images cannot be read so far, more than --max_bad_share=0.09" in found
    )
    assert all(str(root / path) in found for path in bad)
    assert not (tmp_path / "sets" / "photos" / VERSION).exists()
    written = write(root, tmp_path / "sets", max_bad_share=0.1)
    check_equal(written.folder, root, bad)


def test_shard_of_only_unreadable_images(root, tmp_path):
    folder = root / "zoo"
    for path in folder.iterdir():
        path.write_bytes(b"x")
    written = write(root, tmp_path / "sets", shard_bytes=1, max_bad_share=1.0)
    assert sum(written.num_examples.values()) == 20
    left_out = [f"zoo/{path.name}" for path in folder.iterdir()]
    check_equal(written.folder, root, left_out)


class Stop(Exception):
    pass


def stop_after(images):
    def progress(at):
        if at.done >= images and not at.shard:
            raise Stop

    return progress


def times(folder):
    return {
        path.name: path.stat().st_mtime_ns for path in folder.glob("*array_record*")
    }


def test_stopped_run_continues_and_is_invisible_until_complete(
    root, tmp_path, monkeypatch
):
    sets = tmp_path / "sets"
    with pytest.raises(Stop):
        write(root, sets, progress=stop_after(14))
    assert all(path.name.startswith(".") for path in (sets / "photos").iterdir())
    with pytest.raises(UserError):
        open_dataset(str(sets / "photos")).info.with_splits()
    work = sets / "photos" / f".incomplete-{VERSION}"
    before = {name: t for name, t in times(work).items() if name.endswith("of-00005")}
    assert len(before) == 2
    seen = []
    written = write(root, sets, progress=seen.append)
    after = times(pathlib.Path(written.folder))
    assert {name: after[name] for name in before} == before
    assert not work.exists()
    check_equal(written.folder, root)
    assert [at.done for at in seen if at.shard][-1] == 30
    # A second call does nothing.
    monkeypatch.setattr(record_writer, "write_shard", None)
    assert write(root, sets) == written
    assert times(pathlib.Path(written.folder)) == after


def test_run_stopped_at_the_very_end_continues(root, tmp_path, monkeypatch):
    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(record_writer, "move_into_place", stop)
        with pytest.raises(Stop):
            write(root, tmp_path / "sets")
    monkeypatch.setattr(record_writer, "write_shard", None)  # all are finished
    check_equal(write(root, tmp_path / "sets").folder, root)


@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "note", "other"])
def test_finished_shards_are_verified(root, tmp_path, damage):
    sets = tmp_path / "sets"
    with pytest.raises(Stop):
        write(root, sets, progress=stop_after(20))
    work = sets / "photos" / f".incomplete-{VERSION}"
    shard = sorted(work.glob("*-00001-of-?????"))[0]
    note, size = shard.with_name(f"{shard.name}.json"), shard.stat().st_size
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif damage == "grown":
        shard.write_bytes(shard.read_bytes() + b"x")
    elif damage == "gone":
        shard.unlink()
    elif damage == "note":
        note.write_text(note.read_text()[:20])
    else:  # another file of the same size
        shutil.copy(sorted(work.glob("*-00000-of-?????"))[0], shard)
        facts = json.loads(note.read_text())
        note.write_text(json.dumps(facts | {"examples": facts["examples"] + 1}))
    (work / "left-by-another-version").touch()
    written = write(root, sets)
    check_equal(written.folder, root)
    assert pathlib.Path(written.folder, shard.name).stat().st_size == size


def test_changed_files_are_written_again(root, tmp_path):
    sets = tmp_path / "sets"
    with pytest.raises(Stop):
        write(root, sets, progress=stop_after(25))
    for path in root.glob("*/*.png"):
        pixels = np.asarray(Image.open(path))[::-1]
        Image.fromarray(pixels).save(path)
        os.utime(path, (1e9, 1e9))
    check_equal(write(root, sets).folder, root)
    with pytest.raises(Stop):
        write(root, tmp_path / "more", progress=stop_after(25))
    shutil.copy(root / "ant" / "1.png", root / "ant" / "new.png")
    check_equal(write(root, tmp_path / "more").folder, root)
    with pytest.raises(
        UserError, match=r"was prepared from an earlier state of the folder "
    ):
        write(root, sets)


def test_next_process_continues_after_a_kill(root, tmp_path):
    sets = tmp_path / "sets"
    code = f"""if True:
        import os
        from vit_jax.data.sources.folders import list_folder
        from vit_jax.data.preparing.record_writer import write_set
        def progress(at):
            if at.done >= 14 and not at.shard:
                os.kill(os.getpid(), 9)
        write_set(list_folder({str(root)!r}), "photos", {str(sets)!r},
                  shard_bytes={SHARD}, progress=progress)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    work = sets / "photos" / f".incomplete-{VERSION}"
    before = {name: t for name, t in times(work).items() if name.endswith("of-00005")}
    assert len(before) == 2
    written = write(root, sets)
    assert before.items() <= times(pathlib.Path(written.folder)).items()
    check_equal(written.folder, root)


def test_other_sets_are_not_touched(root, tmp_path):
    other = tmp_path / "sets" / "photos" / "3.0.0"
    other.mkdir(parents=True)
    for name in ("3.0.0", VERSION):
        with pytest.raises(UserError, match=rf"holds other files \('{name}'\)"):
            write(root, tmp_path / "sets")
        if name == "3.0.0":
            other.rename(other.with_name(VERSION))
    assert [path.name for path in (tmp_path / "sets" / "photos").iterdir()] == [VERSION]


def test_set_is_not_written_among_its_images(root, tmp_path):
    with pytest.raises(
        UserError, match=r"be written to .*photos, which holds other files \('"
    ):
        write(root, tmp_path)
    assert sorted(path.name for path in root.iterdir()) == ["ant", "zoo", "Über 2"]


def test_two_concurrent_writers_are_refused(root, tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def progress(_):
        inside.set()
        assert go_on.wait(60)

    options = {"progress": progress}
    sets = tmp_path / "sets"
    thread = threading.Thread(target=write, args=(root, sets), kwargs=options)
    thread.start()
    assert inside.wait(60)
    try:
        with pytest.raises(UserError, match=r"another process is preparing .*photos"):
            write(root, sets)
    finally:
        go_on.set()
        thread.join()
    check_equal(sets / "photos" / VERSION, root)


def test_full_disk_is_reported(root, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        with pytest.raises(
            UserError, match=r"No space left .* continues where it stopped"
        ):
            write(root, tmp_path / "sets")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/photos cannot be written: Not a dir"):
        write(root, tmp_path / "file")
    check_equal(write(root, tmp_path / "sets").folder, root)


def test_unsupported_class_names_are_refused(root, tmp_path):
    (root / "zoo").rename(root / " zoo")
    (root / "ant").rename(root / "b\udcff")
    with pytest.raises(
        UserError, match=r"2 class\(es\) with names .*' zoo', 'b.udcff'"
    ):
        write(root, tmp_path / "sets")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Photos-2", "my_photos_2"),
        ("2024", "set_2024"),
        ("ä", "set"),
        ("_x_", "x"),
    ],
)
def test_names_of_sets(text, name):
    assert set_name(text) == name


def test_read_ahead_is_bounded(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_WAITING", 4)
    read, ahead = [], []
    checked = shards._checked
    monkeypatch.setattr(
        shards, "_checked", lambda *given: read.append(1) or checked(*given)
    )

    def progress(at):
        if not at.shard:
            time.sleep(
                0.2 if at.done == 1 else 0
            )  # lets the pool read as far ahead as it may
            ahead.append(len(read) - at.done)

    write(root, tmp_path / "sets", progress=progress, shard_bytes=10**9)
    assert max(ahead) == 3
