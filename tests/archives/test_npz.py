"""NumPy archives: round trips, and headers that the data does not match."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from vit_jax.archives import zips
from vit_jax.archives.npz import (
    array_members,
    read_array,
    read_header,
    read_npz,
    write_npz,
)
from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import read_members

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "fortran": np.asfortranarray(RNG.normal(size=(2, 3))),
    "big endian": RNG.normal(size=(2, 3)).astype(">f8"),
    "both": np.asfortranarray(RNG.normal(size=(2, 3))).astype(">f4"),
    "a/text": np.array(["a", "é"]),
    "bool": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "dates": np.array(["2026-11-01"], "M8[D]"),
    "fields": np.array([(1, 2.5)], [("a", "<i4"), ("b", ">f4")]),
}


def archive(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file


def member_of(content, method=zipfile.ZIP_STORED):
    """Returns the only member of an archive, with the given content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        opened.writestr("a.npy", content)
    return array_members(read_members(file))["a"]


def npy(header, data):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


def header_of(descr="'|u1'", shape="(8,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def check_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].shape == array.shape


def test_round_trip_here_and_with_numpy():
    file = io.BytesIO()
    write_npz(file, ARRAYS)
    check_equal(read_npz(file), ARRAYS)
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        assert found.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_written_by_numpy_are_read(save):
    check_equal(read_npz(archive(save, **ARRAYS)), ARRAYS)


def test_objects_are_neither_written_nor_read():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    objects = np.array([Trap()], object)
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        write_npz(io.BytesIO(), {"a": objects})
    with pytest.raises(Unreadable, match=r"'a\.npy' is object \[1\]"):
        read_npz(archive(a=objects))
    # Even if the size in the header matches the pickle.
    content = npy(header_of("'|O'", "(1,)"), pickle.dumps(None).ljust(8))
    with pytest.raises(Unreadable, match=r"'a\.npy' is object \[1\]"):
        read_array(member := member_of(content), read_header(member))


@pytest.mark.parametrize(
    ("descr", "shape", "problem"),
    [
        ("'|u1'", "(7,)", r"is uint8 \[7\] but holds 8 bytes"),
        ("'|u1'", "(9999999999999,)", r"is uint8 \[9999999999999\] but holds 8"),
        ("'|u1'", "(-2, -4)", "the shape of 'a.npy' is damaged"),
        ("'|u1'", f"({'1,' * 70}8)", "the shape of 'a.npy' is damaged"),
        ("('|u1', (2,))", "(4,)", "is damaged"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_data_that_does_not_match_its_header(descr, shape, problem, method):
    member = member_of(npy(header_of(descr, shape), bytes(8)), method)
    with pytest.raises((Unreadable, ValueError), match=problem):
        read_array(member, read_header(member))


@pytest.mark.parametrize("descr", ["'|V0'", "'<U0'", "'|S0'"])
def test_elements_of_no_bytes_are_refused(descr):
    # NumPy would allocate a byte or more for each element that the header claims.
    member = member_of(npy(header_of(descr, "(99999999999,)"), b""))
    with pytest.raises(Unreadable, match="but holds 0 bytes"):
        read_array(member, read_header(member))


def test_an_empty_array_with_a_huge_dimension_is_refused():
    member = member_of(npy(header_of(shape=f"(0, {1 << 70})"), b""))
    with pytest.raises(Unreadable, match=r"shape of 'a\.npy' is damaged"):
        read_array(member, read_header(member))


def test_no_memory_is_allocated_for_data_the_archive_lacks(monkeypatch):
    def never(count):
        raise AssertionError(f"{count} bytes allocated")

    monkeypatch.setattr(zips, "aligned_bytes", never)
    member = member_of(npy(header_of(shape="(1000000000,)"), bytes(8)))
    with pytest.raises(Unreadable, match="holds 8 bytes"):
        read_array(member, read_header(member))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "EOF"),
        (b"hello world", "magic string is not correct"),
        (npy("{'descr': exit()}", b""), "."),
        (npy("(" * 100, b""), "."),
        (b"\x93NUMPY\3\0" + bytes(9), r"version \(3, 0\) of the format, expected 1\.0"),
    ],
)
def test_damaged_headers(content, problem):
    with pytest.raises(ValueError, match=problem) as error:
        read_header(member_of(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_header_is_read_without_the_array(save):
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            self.count += len(data)
            return data

        def readinto(self, view):
            self.count += (got := super().readinto(view))
            return got

    array = RNG.integers(0, 256, (30, 100_000), np.uint8)
    file = Counting(archive(save, a=array).getvalue())
    header = read_header(array_members(read_members(file))["a"])
    assert str(header) == "uint8 [30, 100000]"
    assert header.nbytes == 3_000_000
    assert file.count < 400_000


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("checksum", [bytes(4), b"\1\2\3\4"])
def test_a_wrong_checksum_is_noticed_even_if_it_is_zero(save, checksum):
    content = bytearray(archive(save, a=np.arange(1000)).getvalue())
    at = content.index(b"PK\1\2") + 16
    content[at : at + 4] = checksum
    with pytest.raises(Unreadable, match=r"checksum of 'a\.npy' does not match"):
        read_npz(io.BytesIO(content))
