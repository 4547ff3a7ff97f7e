"""Tests of Parquet files: paths, embedded images, names of classes, shards, reading."""

import io
import json
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vit_jax.cache import cache_dir
from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.tables import parquet_images
from vit_jax.errors import UserError
from vit_jax.prepare import prepare

ALL = {k: "ab"[k % 2] for k in range(12)}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def hugging_face(columns, features):
    """Adds to a table what Hugging Face's library writes into its schema."""
    table = pa.table(columns)
    info = {"info": {"features": features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def embedded(numbers, names=("dog", "cat"), kind=IMAGE, **more):
    """Makes a table as Hugging Face writes them: label k % 2 of `names`."""
    images = [{"bytes": png(k), "path": f"{k}.png"} for k in numbers]
    if kind != IMAGE:
        images = [image["bytes"] for image in images]
    columns = {
        "image": pa.array(images, kind),
        "label": pa.array([k % 2 for k in numbers], pa.int64()),
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    return hugging_face(columns | more, features)


def test_paths_in_a_column(root, opened):
    table = pa.table(
        {
            "file_name": [f"images/{k}.png" for k in range(12)],
            "category": pa.array([ALL[k] for k in range(12)]).dictionary_encode(),
            "Split": ["val" if k < 4 else "train" for k in range(12)],
            "weight": [k / 2 for k in range(12)],
        }
    )
    pq.write_table(table, root / "t.parquet", row_group_size=5)
    listing, found = opened(root / "t.parquet")
    assert found == {
        "train": {k: ALL[k] for k in range(4, 12)},
        "val": {k: ALL[k] for k in range(4)},
    }
    assert sorted(listing.files["val"].weights) == [0, 0.5, 1, 1.5]
    assert listing.reader is None


@pytest.mark.parametrize("group", [5, 1000])
@pytest.mark.parametrize("kind", [IMAGE, pa.binary(), pa.large_binary()])
def test_embedded_images_and_names_of_classes(root, opened, kind, group):
    pq.write_table(
        embedded(range(12), kind=kind), root / "t.parquet", row_group_size=group
    )
    listing, found = opened(root / "t.parquet")
    assert listing.class_names == ("cat", "dog")
    assert found["train"] | found["val"] == {
        k: ("dog", "cat")[k % 2] for k in range(12)
    }
    assert {found["val"][k] for k in found["val"]} == {"cat", "dog"}
    source = listing.split("train")
    names = {source[k].name for k in range(len(source))}
    assert names <= {f"{root}/t.parquet[{k}]" for k in range(12)}


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
         "data/validation-00000-of-00001.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"],
        ["train-0.parquet", "train-1.parquet", "validation-0.parquet"],
        ["default/training/0.parquet", "default/training/1.parquet",
         "default/dev/0.parquet"],
    ],
)  # fmt: skip
def test_shards(tmp_path, opened, names):
    parts = (range(4, 8), range(8, 12), range(4))
    for name, numbers in zip(names, parts, strict=True):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(embedded(numbers), file)
    (tmp_path / "set" / "README.md").touch()
    listing, found = opened(tmp_path / "set")
    train, evaluation = found.values()
    assert train == {k: ("dog", "cat")[k % 2] for k in range(4, 12)}
    assert evaluation == {k: ("dog", "cat")[k % 2] for k in range(4)}
    assert not listing.held_out


def test_shards_without_splits_are_for_training(tmp_path, opened, message):
    (tmp_path / "set").mkdir()
    for part in range(2):
        file = tmp_path / "set" / f"part-{part:05d}.parquet"
        pq.write_table(embedded(range(6 * part, 6 * part + 6)), file)
    listing, found = opened(tmp_path / "set")
    assert listing.held_out
    assert len(found["train"] | found["val"]) == 12
    pq.write_table(embedded(range(2)), tmp_path / "set" / "train-0.parquet")
    assert "Parquet files of splits and others: part-00000.parquet" in message(
        tmp_path / "set"
    )


def test_an_unlabelled_test_shard_is_left_out(tmp_path, opened):
    (tmp_path / "set").mkdir()
    pq.write_table(embedded(range(12)), tmp_path / "set" / "train-0.parquet")
    test = embedded(range(2)).set_column(1, "label", pa.array([-1, -1], pa.int64()))
    pq.write_table(test, tmp_path / "set" / "test-0.parquet")
    listing, found = opened(tmp_path / "set")
    assert list(found) == ["train", "val"]
    assert "the split test has no labels: its 2 row(s) are left out" in listing.remarks


@pytest.mark.parametrize("feature", ["Sequence", "List", "bare"])
def test_lists_of_labels(root, opened, feature):
    classes = {"names": ["sea", "sky", "tree"], "_type": "ClassLabel"}
    features = {
        "image": {"_type": "Image"},
        "labels": [classes] if feature == "bare"
        else {"feature": classes, "_type": feature},
    }  # fmt: skip
    columns = {
        "image": [{"bytes": png(k), "path": None} for k in range(12)],
        "labels": [[k % 3, (k + 1) % 3] if k else [] for k in range(12)],
    }
    pq.write_table(hugging_face(columns, features), root / "t.parquet")
    listing, found = opened(root / "t.parquet")
    assert listing.multi_label
    assert (found["train"] | found["val"])[2] == "tree|sea"
    assert (found["train"] | found["val"])[0] == ""


def test_a_column_labels_of_single_classes_excludes_others(root, opened):
    table = embedded(range(12))
    classes = {"names": ["dog", "cat"], "_type": "ClassLabel"}
    columns = {"image": table["image"], "labels": table["label"]}
    pq.write_table(hugging_face(columns, {"labels": classes}), root / "t.parquet")
    assert not opened(root / "t.parquet")[0].multi_label


def test_two_columns_of_classes_or_images_are_ambiguous(root, opened, message):
    table = embedded(range(12))
    classes = {"names": ["x", "y"], "_type": "ClassLabel"}
    table = hugging_face(
        {
            "photo_a": table["image"],
            "photo_b": table["image"],
            "fine": table["label"],
            "coarse": table["label"],
        },
        {"fine": classes, "coarse": classes},
    )
    pq.write_table(table, root / "t.parquet")
    found = message(root / "t.parquet")
    assert "2 columns for the path (photo_a, photo_b): set data.path_column" in found
    assert "2 columns for the label (fine, coarse): set data.label_columns" in found
    options = {"path_column": "photo_b", "label_columns": "coarse"}
    assert opened(root / "t.parquet", **options)[0].class_names == ("x", "y")


def test_whole_numbers_and_numbers_beyond_the_names(root, opened, message):
    columns = {
        "image": [png(k) for k in range(12)],
        "label": [k % 3 for k in range(12)],
    }
    pq.write_table(pa.table(columns), root / "t.parquet")
    assert opened(root / "t.parquet")[0].class_names == ("0", "1", "2")
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    pq.write_table(hugging_face(columns, features), root / "t.parquet")
    found = message(root / "t.parquet")
    assert "t.parquet, row 3: label is 2, but the file names 2 classes" in found
    assert "the table has 4 problem(s)" in found


def test_struct_images_without_bytes_are_paths(root, opened):
    images = [
        {"bytes": None if k % 2 else png(k), "path": f"images/{k}.png"}
        for k in range(12)
    ]
    columns = {"image": pa.array(images, IMAGE), "label": [ALL[k] for k in range(12)]}
    pq.write_table(pa.table(columns), root / "t.parquet", row_group_size=4)
    _, found = opened(root / "t.parquet")
    assert found["train"] | found["val"] == ALL
    columns["image"] = pa.array([{"path": one["path"]} for one in images], IMAGE)
    pq.write_table(pa.table(columns), root / "u.parquet")
    listing, found = opened(root / "u.parquet")
    assert found["train"] | found["val"] == ALL
    assert listing.files["train"][0][0].startswith("images/")


def test_a_row_without_an_image_is_a_problem(root, message):
    images = [None if k == 2 else {"bytes": png(k), "path": None} for k in range(12)]
    columns = {"image": pa.array(images, IMAGE), "label": [ALL[k] for k in range(12)]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    assert "t.parquet, row 3: empty path" in message(root / "t.parquet")


@pytest.mark.parametrize("small", [0, 2**20])
def test_images_in_any_order_from_many_threads(root, monkeypatch, small):
    monkeypatch.setattr(parquet_images, "_SMALL", small)
    pq.write_table(embedded(range(200)), root / "t.parquet", row_group_size=30)
    source = open_dataset(str(root / "t.parquet")).contents.split("train+val")

    def number(k):
        return int(decode(source[k].image)[0, 0, 0])

    order = np.random.default_rng(0).permutation(len(source))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(number, order))
    assert sorted(found) == list(range(200))
    rows = [int(source[k].name.rpartition("[")[2][:-1]) for k in order]
    assert found == rows
    unpacked = list((cache_dir() / "parquet").glob("[!.]*"))
    assert len(unpacked) == (0 if small else 1)
    # Another process opens the same files again.
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source.listing.reader)) < 1000
    assert again[3].image == source[3].image


def test_only_a_few_images_are_read_without_unpacking(root, monkeypatch):
    monkeypatch.setattr(parquet_images, "_SMALL", 0)
    pq.write_table(embedded(range(12)), root / "t.parquet", row_group_size=4)
    source = open_dataset(str(root / "t.parquet")).split()
    for k in range(2):
        source[k]
    assert not cache_dir().exists()
    source[2]
    (unpacked,) = (cache_dir() / "parquet").glob("[!.]*")
    # Later runs use what is there; another version of the file replaces it.
    before = unpacked.stat().st_mtime_ns
    source = open_dataset(str(root / "t.parquet")).split()
    assert [int(decode(source[k].image)[0, 0, 0]) for k in range(4)]
    assert unpacked.stat().st_mtime_ns == before
    pq.write_table(embedded(range(100, 112)), root / "t.parquet")
    source = open_dataset(str(root / "t.parquet")).split()
    assert min(int(decode(source[k].image)[0, 0, 0]) for k in range(4)) >= 100
    assert [*(cache_dir() / "parquet").glob("[!.]*")] == [unpacked]
    # A damaged one is written again.
    unpacked.write_bytes(unpacked.read_bytes()[:-30])
    source = open_dataset(str(root / "t.parquet")).split()
    assert min(int(decode(source[k].image)[0, 0, 0]) for k in range(4)) >= 100


def test_without_space_images_are_read_one_by_one(root, monkeypatch, caplog):
    monkeypatch.setattr(parquet_images, "_SMALL", 0)
    usage = parquet_images.shutil.disk_usage(root)._replace(free=0)
    monkeypatch.setattr(parquet_images.shutil, "disk_usage", lambda path: usage)
    pq.write_table(embedded(range(12)), root / "t.parquet", row_group_size=4)
    source = open_dataset(str(root / "t.parquet")).split("train+val")
    found = {int(decode(source[k].image)[0, 0, 0]) for k in range(12)}
    assert found == set(range(12))
    (warning,) = [r.message for r in caplog.records if "unpacked" in r.message]
    assert "No space left on device" in warning
    assert "Set VIT_JAX_CACHE" in warning


@pytest.mark.parametrize("small", [0, 2**20])
def test_damage_costs_the_images_that_it_hits(root, monkeypatch, small):
    monkeypatch.setattr(parquet_images, "_SMALL", small)
    file = root / "t.parquet"
    pq.write_table(
        embedded(range(12)), file, row_group_size=4, compression="gzip",
        use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    listing = open_dataset(str(file)).contents
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    status = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    source = listing.split("train+val")
    good, bad = set(), {}
    for index in range(12):
        try:
            good.add(int(decode(source[index].image)[0, 0, 0]))
        except DecodeError as error:
            bad[_name(source, index)] = str(error)
    assert good == {0, 1, 2, 3, 8, 9, 10, 11}
    assert bad.keys() == {f"{file}[{k}]" for k in range(4, 8)}
    assert all(text.startswith(f"{name} cannot be read") for name, text in bad.items())


def _name(source, index):
    split, position = source._parts[index]
    return f"{source.listing.path}/{source.listing.files[split][position][0]}"


def test_a_changed_file_stops_instead_of_giving_other_images(root):
    pq.write_table(embedded(range(12)), root / "t.parquet")
    source = open_dataset(str(root / "t.parquet")).split()
    pq.write_table(embedded(range(20)), root / "t.parquet")
    with pytest.raises(UserError, match="was written again after") as error:
        source[0]
    assert not isinstance(error.value, DecodeError)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no table at all"])
def test_what_is_no_parquet_is_explained(tmp_path, message, data):
    (tmp_path / "t.parquet").write_bytes(data)
    assert "t.parquet cannot be read: " in message(tmp_path / "t.parquet")
    assert "No such file" in message(tmp_path / "gone.parquet")


def test_without_pyarrow_one_line_says_what_to_install(root, message, monkeypatch):
    pq.write_table(embedded(range(12)), root / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow: pip install 'vit_jax[parquet]'" in message(
        root / "t.parquet"
    )


def test_threads_unpack_a_file_once(root, monkeypatch):
    monkeypatch.setattr(parquet_images, "_SMALL", 0)
    calls, unpack = [], parquet_images._Unpacked.write
    monkeypatch.setattr(
        parquet_images._Unpacked,
        "write",
        lambda *args: calls.append(threading.get_ident()) or unpack(*args),
    )
    pq.write_table(embedded(range(40)), root / "t.parquet", row_group_size=10)
    source = open_dataset(str(root / "t.parquet")).split()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(source.__getitem__, range(20)))
    assert len(calls) == 1


@pytest.mark.parametrize("small", [0, 2**20])
def test_embedded_images_can_be_prepared(root, tmp_path, monkeypatch, small):
    monkeypatch.setattr(parquet_images, "_SMALL", small)
    pq.write_table(embedded(range(12)), root / "t.parquet")
    folder = prepare(str(root / "t.parquet"), str(tmp_path / "sets"))
    source = open_dataset(folder).split("train+val")
    found = {}
    for k in range(len(source)):
        number = int(decode(source[k].image)[0, 0, 0])
        found[number] = source.class_names[source[k].label]
    assert found == {k: ("dog", "cat")[k % 2] for k in range(12)}


def test_preprocessing_of_an_embedded_image(root):
    pq.write_table(embedded(range(12)), root / "t.parquet")
    one = open_dataset(str(root / "t.parquet")).split()[0]
    assert Preprocessing((4, 4)).prepare(one.image, one.name).shape == (4, 4, 3)
