import io
import json
import os
import pathlib
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import Spec, open_tensors

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
RNG = np.random.default_rng(0)
ARRAYS = {
    "block/kernel": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "bfloat16": RNG.normal(size=7).astype(ml_dtypes.bfloat16),
    "float16": RNG.normal(size=(2, 3)).astype(np.float16),
    "float64": RNG.normal(size=(2, 3)),
    "int64": np.arange(5),
    "uint8": np.arange(3, dtype=np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
# Arrays that only an .npz can hold.
ODD = {
    "fortran": np.asfortranarray(ARRAYS["float64"]),
    "big_endian": ARRAYS["float64"].astype(">f8"),
    "text": np.array("config"),
}


def _read_all(path):
    with open_tensors(path) as tensors:
        arrays = {name: tensors.read(name) for name in tensors.specs}
        for name, array in arrays.items():
            assert tensors.specs[name] == Spec(array.shape, array.dtype)
            assert array.dtype.isnative
        return tensors, arrays


def _assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        native = np.asarray(array).astype(np.asarray(array).dtype.newbyteorder("="))
        assert found[name].dtype == native.dtype, name
        np.testing.assert_array_equal(found[name], native, err_msg=name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_npz(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS, **ODD)

    tensors, arrays = _read_all(tmp_path / "a.npz")

    assert (tensors.kind, tensors.metadata) == ("npz", {})
    _assert_same(arrays, ARRAYS | ODD)
    assert all(a.ctypes.data % 64 == 0 for a in arrays.values() if a.size)


def test_reads_npz_written_as_a_stream(tmp_path):
    class Stream(io.RawIOBase):
        """A stream that cannot seek, so that sizes follow the data."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data)

        def writable(self):
            return True

    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(Stream(file), **ARRAYS)

    _assert_same(_read_all(tmp_path / "a.npz")[1], ARRAYS)


def test_reads_npz_to_which_other_files_were_added(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("__MACOSX/._a", b"x")
        archive.mkdir("folder")

    _assert_same(_read_all(tmp_path / "a.npz")[1], {"a": np.arange(3)})


def test_reads_safetensors(tmp_path):
    save_file(ARRAYS, tmp_path / "a", {"format": "pt"})

    tensors, arrays = _read_all(tmp_path / "a")

    assert (tensors.kind, tensors.metadata) == ("safetensors", {"format": "pt"})
    # The library writes wide numbers first.
    _assert_same(arrays, {name: ARRAYS[name] for name in arrays})
    assert arrays.keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    ("file", "wrapper"),
    [("zip", "model"), ("legacy", "model"), ("protocol4", "")],
)
def test_reads_what_torch_wrote(file, wrapper):
    expected = _read_all(GOLDEN / "torch_expected.npz")[1]

    tensors, arrays = _read_all(GOLDEN / f"torch_{file}.pth")

    assert (tensors.kind, tensors.metadata) == ("torch", {"wrapper": wrapper})
    _assert_same(arrays, expected)


def test_closed_and_unknown_names_are_key_errors(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    tensors = open_tensors(str(tmp_path / "a.npz"))
    with pytest.raises(KeyError):
        tensors.read("b")
    tensors.close()
    with pytest.raises(KeyError):
        tensors.read("a")


def test_reading_takes_no_memory_beside_the_array(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, 8_000_000, np.uint8)
    np.savez(tmp_path / "a.npz", a=array)
    with open_tensors(tmp_path / "a.npz") as tensors:
        tracemalloc.start()
        tensors.read("a")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert peak < 8_500_000


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        first, second = {"b": np.arange(3)}, {"a": np.ones(2, np.float32)}
        save_file(first | {"unlisted": np.ones(1)}, tmp_path / "1.safetensors")
        save_file(second, tmp_path / "2.safetensors", {"format": "pt"})
        self.write(tmp_path, b="1.safetensors", a="2.safetensors")
        return tmp_path

    def write(self, folder, **weight_map):
        index = {"metadata": {"total_size": 32}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=1)
        )

    def open(self, folder):
        return _read_all(folder / "model.safetensors.index.json")

    def test_reads_what_the_index_lists(self, folder):
        tensors, arrays = self.open(folder)

        assert (tensors.kind, tensors.metadata) == ("safetensors", {"format": "pt"})
        _assert_same(arrays, {"b": np.arange(3), "a": np.ones(2, np.float32)})

    def test_reads_shards_of_torch(self, folder):
        (folder / "a.bin").write_bytes((GOLDEN / "torch_zip.pth").read_bytes())
        self.write(folder, **{"head.bias": "a.bin"})

        tensors, arrays = self.open(folder)

        assert tensors.kind == "torch"
        assert arrays["head.bias"].shape == (3,)

    def test_names_all_that_is_missing(self, folder):
        self.write(folder, a="1.safetensors", b="3.safetensors", c="4.safetensors")
        match = "2 of the 3 files .*: '3.safetensors', '4.safetensors'"
        with pytest.raises(UserError, match=match):
            self.open(folder)

        self.write(folder, a="1.safetensors", b="1.safetensors", c="2.safetensors")
        match = r"2 of the 3 tensors .*: 'a \(in 1.safetensors\)', 'c \(in 2.safe"
        with pytest.raises(UserError, match=match):
            self.open(folder)

    @pytest.mark.parametrize(
        "shard", ["../1.safetensors", "/etc/passwd", "a\\b", "..", "", "\0", 3, None]
    )
    def test_refuses_shards_outside_of_the_directory(self, folder, shard):
        self.write(folder, a=shard)
        with pytest.raises(UserError, match="names that are not of files beside it"):
            self.open(folder)

    def test_refuses_an_index_of_indices(self, folder):
        self.write(folder, a="model.safetensors.index.json")
        with pytest.raises(UserError, match="names that are not of files beside it"):
            self.open(folder)

    def test_names_the_damaged_shard(self, folder):
        (folder / "2.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"2\.safetensors is an empty file"):
            self.open(folder)

    @pytest.mark.parametrize(
        "text", ['{"a": 1}', '{"weight_map": 3}', "{", '{"weight_map": {}}', "{" * 5000]
    )
    def test_other_json(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=r"weight_map|no tensors"):
            open_tensors(tmp_path / "a.json")


def _bytes_of_npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def _zip(*members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            # A ZipInfo, so that a name may occur twice.
            info = zipfile.ZipInfo(name)
            archive.writestr(info, content, method)
    return file.getvalue()


def _npy(header, data=b"", version=(1, 0)):
    text = header.encode().ljust(63) + b"\n"
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def _header(descr="'<f4'", shape="(2,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


def _array(*args, data=b"\0" * 8, **kwargs):
    return _zip(("a.npy", _npy(_header(*args, **kwargs), data)))


def _encrypted():
    data = bytearray(_bytes_of_npz(a=np.ones(2)))
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def _renamed():
    data = _bytes_of_npz(a=np.ones(2))
    return data.replace(b"a.npy", b"b.npy", 1)


def _wrong_checksum():
    data = bytearray(_bytes_of_npz(a=np.ones(2)))
    data[data.index(b"\xf0\x3f")] ^= 1
    return bytes(data)


def _safetensors(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


# (content of the file, pattern of the message)
BAD = {
    "empty": (b"", "is an empty file. Pass a NumPy archive"),
    "html": (b"<!doctype html>404", "is an HTML or XML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "text": (b"hello", "in an unknown format"),
    "npy": (_npy(_header(), b"\0" * 8), r"a NumPy array \(.npy\). Pass a NumPy arch"),
    "cut": (_bytes_of_npz(a=np.ones(99))[:400], "incomplete down.*Fetch it again"),
    "cut in front": (_bytes_of_npz(a=np.ones(99))[99:], "unknown format"),
    "no arrays": (_zip(("a.txt", b"x")), "a zip archive: it holds no arrays"),
    "objects": (
        _bytes_of_npz(a=np.array([{}], object)),
        "'a.npy' holds pickled Python objects, which may run code. Save plain",
    ),
    "structured": (_bytes_of_npz(a=np.zeros(2, "f4,f4")), "holds elements of type"),
    "void": (_bytes_of_npz(a=np.zeros(2, "V4")), "elements of type"),
    "dates": (_bytes_of_npz(a=np.zeros(2, "M8[s]")), "elements of type"),
    "nothing": (_array("'<U0'", "(2,)", data=b""), "elements of type"),
    "large shape": (_array(shape="(1000000000,)"), r"declares 4,000,000,000 \(float"),
    "small shape": (_array(shape="(1,)"), "holds 8 bytes, but its header declares 4 "),
    "negative": (_array(shape="(-1, -2)"), "shape of its tensor .* damaged"),
    "hollow": (_array(shape="(0, 1 << 70)", data=b""), "damaged"),
    "endless": (_array(shape=f"(0, {1 << 70})", data=b""), "shape .* damaged"),
    "code": (_array(shape="(exit(),)"), "header of its array 'a.npy' is damaged"),
    "nested": (_array(shape="(" * 300), "header of its array 'a.npy' is damaged"),
    "long header": (
        _zip(("a.npy", _npy(_header() + " " * 20_000, version=(2, 0)))),
        "header of its array 'a.npy' is damaged",
    ),
    "version": (_zip(("a.npy", _npy(_header(), version=(3, 0)))), "version"),
    "no npy": (_zip(("a.npy", b"hello")), "header of its array 'a.npy' is damaged"),
    "absolute": (_zip(("/etc/a.npy", b"")), "'/etc/a.npy', a path that leads out"),
    "parent": (_zip(("a/../../b.npy", b"")), "a path that leads out of the archive"),
    "encrypted": (_encrypted(), "'a.npy' is encrypted"),
    "renamed": (_renamed(), "'a.npy' is not where the directory says"),
    "checksum": (_wrong_checksum(), "checksum of 'a.npy' does not match"),
    "lzma": (_zip(("a.npy", b""), method=zipfile.ZIP_LZMA), "zip method 14"),
    "bomb": (
        _bytes_of_npz(np.savez_compressed, a=np.zeros(40_000_000, np.uint8)),
        "claim to expand to 40,000,128; weights never compress that far",
    ),
    "long directory": (
        _zip(*((f"{i:0>1000}.npy", b"") for i in range(1100))),
        "its directory is damaged",
    ),
    "safetensors cut": (_safetensors(_tensor(), b"\0" * 7), "of 1 tensors: .*Fetch it"),
    "safetensors length": (
        struct.pack("<Q", 1 << 40) + b"{}",
        "declares a header of 1,099,511,627,776 bytes",
    ),
    "safetensors type": (
        _safetensors(_tensor("F8_E4M3", (8,))),
        "'a' is of type F8_E4M3. Convert it to one of F64",
    ),
    "safetensors shape": (_safetensors(_tensor(shape=(1 << 40,))), "Error.*Fetch it"),
    "safetensors overflow": (_safetensors(_tensor(shape=(1 << 62, 8))), "Fetch it"),
    "safetensors hollow": (
        _safetensors(_tensor(shape=(0, 1 << 63), offsets=(0, 0)), b""),
        "shape of its tensor 'a' is damaged|Fetch it",
    ),
    "safetensors offsets": (_safetensors(_tensor(offsets=(4, 12))), "Fetch it"),
    "safetensors text": (_safetensors(b"{ not json"), "a damaged safetensors file"),
}


@pytest.mark.parametrize("what", BAD)
def test_says_in_one_line_what_is_wrong(what, tmp_path):
    content, match = BAD[what]
    path = tmp_path / "weights"
    path.write_bytes(content)
    tracemalloc.start()

    with pytest.raises(UserError, match=match) as error:
        _read_all(path)

    assert tracemalloc.get_traced_memory()[1] < 64_000_000
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path} is a")
    assert "\n" not in str(error.value)


def test_refuses_a_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        content = _zip(("a.npy", b""), ("b.npy", b""), ("a.npy", b""))
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"holds more than once: 'a\.npy'"):
        open_tensors(tmp_path / "a")


def test_refuses_members_that_overlap(tmp_path):
    content = _bytes_of_npz(a=np.zeros(9999))
    directory = content.index(b"PK\1\2")
    end = content.index(b"PK\5\6")
    entry = content[directory:end]
    # Ten entries in the directory for one and the same array.
    entries = b"".join(entry.replace(b"a.npy", b"%d.npy" % i) for i in range(10))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10, 10, len(entries), directory, 0)
    (tmp_path / "a").write_bytes(content[:directory] + entries + tail)
    with pytest.raises(UserError, match="members claim 801,200 bytes, but the file"):
        open_tensors(tmp_path / "a")


def test_moderate_expansion_is_allowed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 20, np.float32))

    assert not _read_all(tmp_path / "a.npz")[1]["a"].any()


def test_missing_files_directories_and_pipes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing at .*/gone\. Pass a NumPy archive"):
        open_tensors(tmp_path / "gone")
    with pytest.raises(
        UserError, match=r"is an empty directory\. Pass a NumPy archive"
    ):
        open_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_tensors(tmp_path / "pipe")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(9999))
    with open_tensors(tmp_path / "a.npz") as tensors:
        os.truncate(tmp_path / "a.npz", 5000)
        with pytest.raises(UserError, match=r"the file ends within 'a\.npy'"):
            tensors.read("a")
