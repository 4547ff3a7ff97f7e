"""Tests of `python -m vit_jax.prepare` for folders and tables.

tests/data/sources/test_tfds_sets.py covers tensorflow-datasets sets.
"""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax import prepare
from vit_jax.data.sources import tfds_sets
from vit_jax.data.sources.datasets import open_dataset

SETS = pathlib.Path(__file__).parent / "fixtures" / "tfds"


@pytest.fixture
def root(tmp_path):
    for k in range(40):
        path = tmp_path / "Pets 1" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(path)
    return tmp_path / "Pets 1"


def test_prepares_a_folder_and_a_table(root, tmp_path, run_command, capfd):
    table = tmp_path / "list.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(root.glob("*/*"))]
    table.write_text("\n".join(["path,label", *rows]))
    run_command(prepare, root, table, f"--data_dir={tmp_path / 'sets'}")
    out, err = capfd.readouterr()
    folders = [str(tmp_path / "sets" / name / "1.0.0") for name in ("pets_1", "list")]
    assert out.splitlines() == [
        f"prepared {dataset} in {folder}"
        for dataset, folder in zip((root, table), folders, strict=True)
    ]
    # Not on a terminal: a line for each file, and how to use the result.
    lines = err.splitlines()
    assert lines[1] == "40/40 images: pets_1-val.array_record-00000-of-00001"
    assert lines[2].endswith(f"; to use it: --config.dataset={folders[0]}")
    assert len(lines) == 6
    for dataset, folder in zip((root, table), folders, strict=True):
        assert open_dataset(folder).info.class_names == ("a", "b")
        ours, theirs = (
            open_dataset(str(one)).split("val") for one in (folder, dataset)
        )
        assert [one.image for one in ours] == [one.image for one in theirs]


def test_options_say_how_a_folder_is_read(root, tmp_path, run_command, capfd):
    (root / "a").rename(root / "b" / "x")
    (root / "b").rename(root / "Dev Set")
    fill = root / "Pool"
    fill.mkdir()
    (root / "Dev Set" / "x").rename(fill / "x")
    (root / "Dev Set").rename(fill / "y")
    options = ["--data=splits=train=Pool", "--data=hold_out=0.5"]
    options.append("--data=white_level=4095")
    run_command(prepare, root, f"--data_dir={tmp_path / 'sets'}", *options)
    info = open_dataset(str(tmp_path / "sets" / "pets_1")).info
    assert info.class_names == ("x", "y")
    assert info.num_examples.keys() == {"train", "val"}
    assert 10 <= info.num_examples["val"] <= 30
    # Files are copied as they are.
    assert "said again: --config.data.white_level=4095" in capfd.readouterr().err


def test_a_set_prepared_before_is_found_prepared(root, tmp_path, run_command, capfd):
    data_dir = f"--data_dir={tmp_path / 'sets'}"
    run_command(prepare, root, data_dir, "--data=rules=1")
    note = tmp_path / "sets/pets_1/1.0.0/prepared_from.json"
    found = json.loads(note.read_text())
    assert found.pop("rules") == 1
    note.write_text(json.dumps(found))  # as a version wrote it that had only these
    capfd.readouterr()
    run_command(prepare, root, data_dir)
    assert capfd.readouterr().out == f"prepared {root} in {note.parent}\n"


def test_unreadable_images_and_the_share_allowed(root, tmp_path, run_command, capfd):
    for k in range(12):
        (root / "a" / f"bad{k}.png").write_bytes(b"no image")
    arguments = (root, f"--data_dir={tmp_path / 'sets'}")
    with pytest.raises(SystemExit, match=r"1 of 52 images cannot be read so far, more"):
        run_command(prepare, *arguments)
    capfd.readouterr()
    run_command(prepare, *arguments, "--max_bad_share=0.3")
    lines = capfd.readouterr().err.splitlines()
    named = [line for line in lines if line.startswith("left out: ")]
    assert len(named) == 11
    assert "bad" in named[0]
    assert named[-1] == (
        f"left out: 12 in total, see {tmp_path}/sets/pets_1/1.0.0/prepared_from.json"
    )
    with pytest.raises(SystemExit, match=r"max_bad_share"):
        run_command(prepare, *arguments, "--max_bad_share=1.5")


def test_shows_a_bar_on_a_terminal(root, tmp_path, run_command, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run_command(prepare, root, f"--data_dir={tmp_path / 'sets'}")
    out, err = capfd.readouterr()
    assert "40/40" in err
    assert "━" in err
    assert out.count("\n") == 1


def test_failures_do_not_stop_the_rest(root, tmp_path, run_command, monkeypatch):
    np.savez(
        tmp_path / "x.npz", images=np.zeros((30, 4, 4), np.uint8), labels=[0, 1] * 15
    )
    monkeypatch.setattr(tfds_sets, "tensorflow_is_installed", lambda: False)
    names = ("digits", tmp_path / "x.npz", tmp_path / "gone", root, "cifar10")
    with pytest.raises(SystemExit) as error:
        run_command(prepare, *names, f"--data_dir={tmp_path / 'sets'}")
    found = str(error.value)
    assert "'digits' (digits) is held in memory and needs no preparing" in found
    assert "x.npz' (arrays) is held in memory" in found
    assert f"there is no folder {tmp_path / 'gone'}" in found
    assert "preparing 'cifar10' needs TensorFlow" in found
    assert open_dataset(str(tmp_path / "sets" / "pets_1")).info.num_classes == 2


def test_folder_in_another_format_needs_tensorflow(run_command, monkeypatch):
    monkeypatch.setattr(tfds_sets, "tensorflow_is_installed", lambda: False)
    folder = SETS / "tiny_tfrecord"
    with pytest.raises(
        SystemExit, match=r"tiny_tfrecord' needs TensorFlow, once"
    ) as error:
        run_command(prepare, folder)
    assert str(error.value).endswith(f"python -m vit_jax.prepare {folder}")


def test_folder_that_is_already_prepared(run_command, capfd, monkeypatch):
    monkeypatch.setattr(tfds_sets, "tensorflow_is_installed", lambda: True)
    run_command(prepare, SETS / "tiny_digits")
    expected = f"prepared {SETS}/tiny_digits in {SETS}/tiny_digits/1.0.0\n"
    assert capfd.readouterr().out == expected
