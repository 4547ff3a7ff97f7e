"""The start of a run, which opens a data set of any kind only once."""

import collections
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import claim
from vit_jax.data.sources import digits, folders, tfds_labels, tfds_sets
from vit_jax.data.sources.array_files import npz
from vit_jax.data.sources.tables import reading
from vit_jax.errors import UserError
from vit_jax.train.same_data import check_same_data, data_facts
from vit_jax.train.setup import set_up
from vit_jax.train.start import as_begun, claimed, open_sources

SETS = str(pathlib.Path(__file__).parents[1] / "fixtures" / "tfds")


def image_folder(root):
    for name in "ab":
        (root / "set" / name).mkdir(parents=True)
        for k in range(20):
            pixels = np.full((12, 12, 3), k, np.uint8)
            Image.fromarray(pixels).save(root / "set" / name / f"{k}.png")
    return str(root / "set")


def table(root):
    image_folder(root)
    rows = [f"set/{name}/{k}.png,{name}" for name in "ab" for k in range(20)]
    (root / "set.csv").write_text("\n".join(["path,label", *rows]))
    return str(root / "set.csv")


def tables_of_splits(root):
    image_folder(root)
    for split, first in (("train", 0), ("val", 15)):
        rows = [f"set/{name}/{k}.png,{name}" for name in "ab" for k in range(first, 20)]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    return str(root)


def array_file(root):
    images = np.zeros((40, 12, 12, 3), np.uint8)
    np.savez(root / "set.npz", images=images, labels=np.arange(40) % 4)
    return str(root / "set.npz")


# A function that writes a data set, the functions that read it, and the number of
# different files, or arrays of a file, that they read.
KINDS = {
    "image folder": (image_folder, [(folders, "divide")], 1),
    "table": (table, [(reading, "open_table")], 1),
    "tables of splits": (tables_of_splits, [(reading, "open_table")], 2),
    "arrays": (array_file, [(npz, "headers"), (npz, "read")], 3),
    "prepared folder": (
        lambda _: f"{SETS}/tiny_digits/1.0.0",
        [(tfds_sets, "open_folder"), (tfds_labels, "find_labels")],
        2,
    ),
    "prepared name": (
        lambda _: "tiny_digits",
        [(tfds_sets, "open_name"), (tfds_labels, "find_labels")],
        2,
    ),
    "digits": (lambda _: "digits", [(np, "loadtxt")], 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_reads_its_data_set_once(kind, tmp_path, tiny_config, monkeypatch):
    write, readers, expected = KINDS[kind]
    asked = collections.Counter()

    def counting(name, read):
        def counted(*args, **options):
            asked[name, *(arg for arg in args if isinstance(arg, str))] += 1
            return read(*args, **options)

        return counted

    for owner, name in readers:
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    digits._pixels_and_labels.cache_clear()
    data_dir = SETS if kind == "prepared name" else ""
    setup = set_up(tiny_config(dataset=write(tmp_path), data_dir=data_dir))
    train, held_out = open_sources(setup)
    assert setup.info.num_examples == {
        setup.info.train_split: len(train),
        setup.info.eval_split: len(held_out),
    }
    assert len(asked) == expected
    assert set(asked.values()) == {1}


def test_a_run_can_be_planned_without_its_published_data(tiny_config, tmp_path):
    setup = set_up(tiny_config(dataset="cifar10", data_dir=str(tmp_path)))
    assert setup.info.num_examples == {"train": 50_000, "test": 10_000}
    assert (setup.config.dataset, setup.config.data_dir) == ("cifar10", str(tmp_path))


TEXT_ORDER = ("0", "1", "10", "11", *map(str, range(2, 10)))


@pytest.fixture
def numbered(tmp_path):
    """Folders "0" to "11" with 20 files each."""
    for name in range(12):
        (tmp_path / "set" / str(name)).mkdir(parents=True)
        for k in range(20):
            image = Image.fromarray(np.zeros((12, 12, 3), np.uint8))
            image.save(tmp_path / "set" / str(name) / f"{k}.png")
    return str(tmp_path / "set")


def begin_before_rules(config, workdir):
    """Writes a work directory as a version wrote it that recorded no rules."""
    setup = set_up(config_lib.changed(config, {"data.rules": 1}))
    plain = config_lib.to_plain(setup.config)
    del plain["data"]
    with claim(workdir, plain):
        (workdir / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    return Description(
        setup.architecture,
        setup.preprocessing,
        TEXT_ORDER,
        plain,
        1,
        setup.info.num_examples,
    )


def test_a_run_begun_before_keeps_its_classes_and_its_held_out_part(
    numbered, tiny_config, tmp_path
):
    config = tiny_config(dataset=numbered)
    earlier = begin_before_rules(config, tmp_path / "run")
    setup = set_up(as_begun(config, str(tmp_path / "run")))
    train, held_out = open_sources(setup)
    assert check_same_data(numbered, data_facts(setup, train, held_out), earlier)
    assert train.class_names == TEXT_ORDER
    position = train[0].name.split("/")[-2]
    assert train[0].label == TEXT_ORDER.index(position)
    counts = np.bincount(held_out.labels(), minlength=12)
    # As version 4f40482 held them out.
    assert counts.tolist() == [1, 2, 3, 2, 1, 3, 2, 2, 4, 2, 0, 3]
    with claimed(str(tmp_path / "run"), setup.config):
        recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["data"]["rules"] == 1
    # From now on, the file says so itself.
    assert as_begun(config, str(tmp_path / "run")).data.rules == 1


def test_a_new_run_records_its_rules(numbered, tiny_config, tmp_path):
    config = as_begun(tiny_config(dataset=numbered), str(tmp_path / "run"))
    setup = set_up(config)
    train, held_out = open_sources(setup)
    assert train.class_names == tuple(map(str, range(12)))
    assert np.bincount(held_out.labels(), minlength=12).min() >= 1
    assert setup.config.data.rules == 2
    earlier = begin_before_rules(config, tmp_path / "old")
    with pytest.raises(UserError, match="the run so far was trained on 0, 1, 10, 11"):
        check_same_data(numbered, data_facts(setup, train, held_out), earlier)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.rules", 2), ("data.hold_out", 0.2), ("data.splits", "none")],
)
def test_other_data_options_are_another_run(
    numbered, tiny_config, tmp_path, key, value
):
    config = tiny_config(dataset=numbered)
    begin_before_rules(config, tmp_path / "run")
    other = as_begun(config_lib.changed(config, {key: value}), str(tmp_path / "run"))
    with (
        pytest.raises(UserError, match=rf'{key}: \S+ → "?{value}"?\n'),
        claimed(str(tmp_path / "run"), set_up(other).config),
    ):
        pass
