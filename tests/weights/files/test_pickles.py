"""Readers of honest and hostile PyTorch files, which are written here without PyTorch.

The three files in `UNSAFE` are the reason for the reader: `pickle.Unpickler` fails on
them even if its `find_class` accepts a whitelist only.
"""

import argparse
import collections
import contextlib
import enum
import io
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from typing import ClassVar, NamedTuple

import numpy as np
import pytest

from vit_jax.archives.unreadable import Unreadable
from vit_jax.errors import UserError
from vit_jax.weights.files.pytorch.pickles import (
    Global,
    Inert,
    Storage,
    Tensor,
    read_pickle,
)
from vit_jax.weights.files.tensors import open_tensors


class Name(NamedTuple):
    """A class or function that need not exist, pickled by name."""

    module: str
    name: str

    def __call__(self, *_):
        raise AssertionError("only its name is written")


class Call(NamedTuple):
    """A call, pickled as such."""

    function: Name
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments


class Stored(NamedTuple):
    """A storage, pickled as a reference to data outside of the pickle."""

    key: str
    kind: str
    count: int
    data: bytes = b""


class TorchPickler(pickle._Pickler):
    """The pickler in Python, changed to write names without looking them up."""

    def __init__(self, file, legacy):
        super().__init__(file, 2)
        self.legacy = legacy

    def persistent_id(self, obj):
        if not isinstance(obj, Stored):
            return None
        kind = Name("torch", f"{obj.kind}Storage")
        rest = (None,) if self.legacy else ()
        return ("storage", kind, obj.key, "cpu", obj.count, *rest)

    def save_name(self, name):
        self.write(b"c%s\n%s\n" % (name.module.encode(), name.name.encode()))
        self.memoize(name)

    def save_call(self, call):
        self.save_reduce(*call.__reduce__(), obj=call)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, Name: save_name, Call: save_call}


def _pickle(value, legacy=False):
    file = io.BytesIO()
    TorchPickler(file, legacy).dump(value)
    return file.getvalue()


def _write_zip(path, value, storages, byteorder=b"little", folder="archive"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", _pickle(value))
        archive.writestr(f"{folder}/byteorder", byteorder)
        for storage in storages:
            archive.writestr(f"{folder}/data/{storage.key}", storage.data)
        archive.writestr(f"{folder}/version", b"3\n")


def _write_legacy(path, value, storages, little=True):
    sizes = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    parts = [0x1950A86A20F9469CFC6C, 1001, sizes, value, [s.key for s in storages]]
    order = "<" if little else ">"
    path.write_bytes(
        b"".join(_pickle(part, legacy=True) for part in parts)
        + b"".join(struct.pack(f"{order}q", s.count) + s.data for s in storages)
    )


WRITERS = {"zip": _write_zip, "legacy": _write_legacy}


def _storage(array, key="0", kind="Float"):
    return Stored(key, kind, array.size, array.tobytes())


def _tensor(storage, shape, strides, offset=0):
    hooks = collections.OrderedDict()
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, hooks))


NUMBERS = np.arange(24, dtype=np.float32)
STORAGE = _storage(NUMBERS)
GOOD = _tensor(STORAGE, (4, 6), (6, 1))


def _read(path):
    with open_tensors(path) as tensors:
        arrays = {name: tensors.read(name) for name in tensors.specs}
        assert {n: (a.shape, a.dtype) for n, a in arrays.items()} == dict(tensors.specs)
        return tensors.metadata["wrapper"], arrays


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Returns a function that writes a value in either format and reads its tensors."""

    def write(value, storages=(STORAGE,), **how):
        path = tmp_path / "weights.pth"
        WRITERS[request.param](path, value, storages, **how)
        return _read(path)

    return write


def test_views_of_one_storage(write):
    state = {
        "whole": GOOD,
        "transposed": _tensor(STORAGE, (6, 4), (1, 6)),
        "part": _tensor(STORAGE, (2, 3), (6, 1), 7),
        "every_other": _tensor(STORAGE, (3,), (2,), 1),
        "scalar": _tensor(STORAGE, (), (), 5),
        "empty": _tensor(STORAGE, (0, 3), (3, 1), 24),
        "any_stride": _tensor(STORAGE, (1, 24), (1 << 61, 1)),
    }

    arrays = write(state)[1]

    whole = NUMBERS.reshape(4, 6)
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:3, 1:4],
        "every_other": NUMBERS[1:7:2],
        "scalar": NUMBERS[5],
        "empty": np.zeros((0, 3)),
        "any_stride": NUMBERS[None],
    }
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("writer", "how"),
    [(_write_zip, {"byteorder": b"big"}), (_write_legacy, {"little": False})],
)
def test_the_other_byte_order(writer, how, tmp_path):
    storage = _storage(NUMBERS.astype(">f4"))
    writer(tmp_path / "a", {"a": _tensor(storage, (24,), (1,))}, [storage], **how)

    np.testing.assert_array_equal(_read(tmp_path / "a")[1]["a"], NUMBERS)


@pytest.mark.parametrize(
    ("saved", "wrapper"),
    [
        ({"a": GOOD}, ""),
        ({"model": {"a": GOOD}, "best": GOOD}, "model"),
        # The averaged weights come first, as in timm's loader.
        ({"model_ema": {"a": GOOD}, "state_dict": {"b": GOOD}}, "model_ema"),
        ({"model": {"b": GOOD}, "state_dict_ema": {"a": GOOD}}, "state_dict_ema"),
        ({"model_ema": None, "model": {"a": GOOD}}, "model"),
        ({"teacher": {"module": {"a": GOOD}}, "epoch": 3}, "teacher/module"),
        ({"model": {"name": "vit"}, "net": {"a": GOOD}}, "net"),
        ({"model": "vit", "a": GOOD, 7: GOOD, "version": "1"}, ""),
        (collections.OrderedDict(a=GOOD), ""),
        ({"a": Call(Name("torch._utils", "_rebuild_parameter"), (GOOD, True))}, ""),
    ],
)
def test_finds_the_state_dict(write, saved, wrapper):
    found, arrays = write(saved)

    assert found == wrapper
    assert list(arrays) == ["a"]


@pytest.mark.parametrize(
    ("saved", "entries"),
    [
        ({"model": {"a": GOOD}, "epoch": 3, "optimizer": {"a": {"b": GOOD}}}, "model"),
        ({"model_ema": {"a": GOOD}, "model": {"b": GOOD}}, "model_ema, model"),
        (
            {"teacher": {"module": {"a": GOOD}, "net": {"b": GOOD}}, "student": {}},
            "teacher/module, teacher/net",
        ),
        (
            {
                "model": {"b": GOOD},
                "student": {"module": {"b": GOOD}},
                "state_dict": {"a": GOOD},
            },
            "state_dict, model, student/module",
        ),
        # Names that nobody knows come last, in the file's order.
        (
            {"z": {"b": GOOD}, "c": [{"b": GOOD}], "network": {"a": GOOD}},
            "network, z, c/0",
        ),
    ],
)
def test_all_state_dicts_are_named(saved, entries, tmp_path):
    _write_zip(tmp_path / "a", saved, [STORAGE])
    with open_tensors(tmp_path / "a") as tensors:
        assert list(tensors.specs) == ["a"]
        assert ", ".join(tensors.entries) == entries
        assert {name: list(tensors.of(name).specs) for name in tensors.entries} == {
            name: ["b" if i else "a"] for i, name in enumerate(tensors.entries)
        }


def test_a_head_beside_its_model_is_part_of_it(tmp_path):
    saved = {"head": {"weight": GOOD, "bias": GOOD}, "backbone": {"a": GOOD}}
    _write_zip(tmp_path / "a", saved, [STORAGE])
    with open_tensors(tmp_path / "a") as tensors:
        assert list(tensors.specs) == ["a", "head.weight", "head.bias"]


def test_a_saved_object_that_contains_itself_ends(tmp_path):
    loop = {"a": GOOD}
    loop["model"] = loop
    _write_zip(tmp_path / "a", loop, [STORAGE])
    with open_tensors(tmp_path / "a") as tensors:
        assert tensors.entries == [""]


class Color(enum.Enum):
    RED = 1


def test_objects_beside_the_weights_stay_inert(write):
    beside = {
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("a/b")),
        "kept": collections.defaultdict(list, {"a": [1]}),
        "sets": [{1, 2}, frozenset("ab")],
        "enum": Color.RED,
        "numpy": np.float64(3),
        "array": np.arange(3),
        "config": Call(Name("omegaconf.dictconfig", "DictConfig"), ({"a": 1},)),
        (1, 2): b"bytes",
        "long": [1 << 100, -1, 3.5, True, None, ()],
    }

    assert list(write({"model": {"a": GOOD}, **beside})[1]) == ["a"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_the_containers_of_all_protocols(protocol):
    value = {
        "numbers": [0, 255, 256, -1, 1 << 40, 1 << 2100, 1.5],
        "texts": ["", "é", "x" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "constants": [True, False, None],
        "nested": {"a": {"b": []}},
    }
    if protocol > 2:
        value["bytes"] = [b"", b"x" * 300]
    shared = value["nested"]
    value["again"] = shared

    found = read_pickle(io.BytesIO(pickle.dumps(value, protocol))).value

    assert found == value
    assert found["again"] is found["nested"]


def test_recognises_tensors_and_leaves_other_objects_inert():
    tensor = _tensor(STORAGE, (4, 6), (6, 1))
    pickled = _pickle([tensor, argparse.Namespace(a=1), Name("a.b", "C")])

    value, storages = read_pickle(io.BytesIO(pickled))

    storage = Storage("0", Global("torch", "FloatStorage"), 24)
    namespace = Inert(Global("argparse", "Namespace"))
    assert value == [Tensor(storage, 0, (4, 6), (6, 1)), namespace, Global("a.b", "C")]
    assert storages == {"0": storage}


class Attack:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("writer", WRITERS.values())
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda flag: (os.system, f"touch {flag}"), "system"),
        (lambda flag: (eval, f"open({flag!r}, 'w')"), "eval"),
        (lambda flag: (exec, f"open({flag!r}, 'w')"), "exec"),
        (lambda flag: (open, flag, "w"), "open"),
        (lambda flag: (subprocess.Popen, ["touch", flag]), "Popen"),
    ],
)
def test_an_attack_is_named_and_nothing_runs(
    function, named, writer, protocol, tmp_path
):
    flag = tmp_path / "flag"
    attack = Attack(*function(str(flag)))
    if protocol == 4:
        (tmp_path / "a").write_bytes(pickle.dumps({"a": attack}, protocol))
    else:
        writer(tmp_path / "a", {"model": {"a": GOOD}, "b": attack}, [STORAGE])

    with pytest.raises(UserError, match=f"{named}.*it was not run.*Do not trust"):
        open_tensors(tmp_path / "a")

    assert not flag.exists()
    # The attack itself works, so it was the reader that did not run it.
    if named == "eval" and protocol == 4:
        pickle.loads((tmp_path / "a").read_bytes())["a"].close()
        assert flag.exists()


def test_calls_of_other_packages_are_never_made(write, tmp_path):
    """Calls stay inert even if the package is installed."""
    flag = tmp_path / "flag.npy"
    call = Call(Name("numpy", "save"), (str(flag), 1))

    assert list(write({"model": {"a": GOOD}, "b": call})[1]) == ["a"]
    assert not flag.exists()


def test_a_whole_model_is_named(write):
    model = Call(Name("timm.models", "VisionTransformer"), ())
    with pytest.raises(UserError, match=r"an object of 'timm\.models\.VisionTrans"):
        write(model, [])
    message = r"a dict without tensors \('model', 'epoch'\) instead"
    with pytest.raises(UserError, match=message):
        write({"model": model, "epoch": 3}, [])
    message = r"of type list instead of a state dict\. Load it where it was made"
    with pytest.raises(UserError, match=message):
        write([GOOD])


@pytest.mark.parametrize("function", ["_rebuild_sparse_tensor", "_rebuild_qtensor"])
def test_tensors_of_other_kinds_are_named(write, function):
    odd = Call(Name("torch._utils", function), (STORAGE,))
    with pytest.raises(UserError, match="of kinds that vit_jax cannot read: 'b'"):
        write({"a": GOOD, "b": odd})


BAD_TENSORS = {
    "behind the end": ((_tensor(STORAGE, (4, 6), (6, 1), 1)), "declares 24 numbers"),
    "too wide": (_tensor(STORAGE, (2, 2), (23, 1)), "its storage holds 24"),
    "expanded": (_tensor(STORAGE, (10**12,), (0,)), "declares 1,000,000,000,000"),
    "negative stride": (_tensor(STORAGE, (4,), (-1,), 5), "shape of .* is damaged"),
    "negative offset": (_tensor(STORAGE, (4,), (1,), -1), "shape of .* is damaged"),
    "negative shape": (_tensor(STORAGE, (-4,), (1,)), "shape of .* is damaged"),
    "no numbers": (_tensor(STORAGE, ("4",), (1,)), "shape of .* is damaged"),
    "flags": (_tensor(STORAGE, (True,), (1,)), "shape of .* is damaged"),
    "too large": (_tensor(STORAGE, (1 << 80,), (1,)), "shape of .* is damaged"),
    "hollow": (_tensor(STORAGE, (0, 1 << 61), (1, 1)), "shape of .* is damaged"),
    "lengths": (_tensor(STORAGE, (4, 6), (1,)), "shape of .* is damaged"),
    "dimensions": (_tensor(STORAGE, (1,) * 33, (1,) * 33), "shape of .* is damaged"),
    "list": (_tensor(STORAGE, [4], [1]), "shape of .* is damaged"),
    "no storage": (_tensor("0", (4,), (1,)), "has a type that NumPy lacks"),
    "few arguments": (
        Call(Name("torch._utils", "_rebuild_tensor_v2"), (STORAGE,)),
        "its pickle is damaged",
    ),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_do_not_fit_their_storage_are_refused(write, what):
    tensor, match = BAD_TENSORS[what]
    with pytest.raises(UserError, match=match):
        write({"a": GOOD, "b": tensor})


def test_storages_that_are_missing_or_of_another_size(write):
    with pytest.raises(UserError, match="data of its storage '0' is missing"):
        write({"a": GOOD}, [])
    message = r"storage '0' (holds 92 bytes, but declares 96|does not hold the 24 num)"
    with pytest.raises(UserError, match=message):
        write({"a": GOOD}, [STORAGE._replace(data=STORAGE.data[:-4])])
    other = STORAGE._replace(count=12)
    with pytest.raises(UserError, match="its pickle is damaged"):
        write({"a": GOOD, "b": _tensor(other, (12,), (1,))})
    unknown = STORAGE._replace(kind="QInt8")
    with pytest.raises(UserError, match=r"Save dense, unquantized|has a type that"):
        write({"a": _tensor(unknown, (24,), (1,))}, [unknown])


def test_many_tensors_of_one_storage_are_bounded(write):
    storage = _storage(np.zeros(1 << 21, np.float32))
    state = {f"t{i}": _tensor(storage, (1 << 21,), (1,)) for i in range(5)}
    message = "8,388,608 bytes claim to expand to 41,943,040"
    with pytest.raises(UserError, match=message):
        write(state, [storage])
    # Tied weights are allowed.
    assert len(write(dict(list(state.items())[:4]), [storage])[1]) == 4


def test_a_legacy_file_that_was_cut_off(tmp_path):
    _write_legacy(tmp_path / "a", {"a": GOOD}, [STORAGE])
    content = (tmp_path / "a").read_bytes()
    for length in range(2, len(content), 29):
        (tmp_path / "a").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a pickle, such as .*"):
            open_tensors(tmp_path / "a")


def test_pickles_that_torch_did_not_write_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(UserError, match=r"it was not written by torch\.save\. Pass"):
        open_tensors(tmp_path / "a")


# Bytes and the outcome with a whitelisted `pickle.Unpickler`: the exit status of the
# process, and the possible outputs of `WHITELISTED`.
UNSAFE = {
    # Hashing the key calls itself once for each tuple, until the stack of C overflows.
    "crash": (
        b"\x80\x02"  # PROTO 2
        b"}"  # EMPTY_DICT
        b")"  # EMPTY_TUPLE
        + b"\x85"
        * 200_000  # TUPLE1: puts the tuple into another one
        + b"K\x01"  # BININT1 1
        b"s"  # SETITEM: hashes the tuple
        b".",  # STOP
        -signal.SIGSEGV,
        {""},
    ),
    # The memo is made twice as large as the index, 2^28 pointers of 8 bytes: 2 GiB.
    # "0 None" is the outcome if a version of Python makes it no larger than it must be.
    "memory": (
        b"\x80\x02"  # PROTO 2
        b"K\x00"  # BININT1 0
        b"r\x00\x00\x00\x08"  # LONG_BINPUT 2^27: stores the 0 at this index
        b".",  # STOP
        0,
        {"MemoryError None", "0 None"},
    ),
    # BUILD takes an object and a pair of states; it sets the items of the second as
    # attributes. The object is the function, by which every later tensor is made.
    "defaults": (
        b"\x80\x02"  # PROTO 2
        b"ctorch._utils\n_rebuild_tensor_v2\n"  # GLOBAL: the whitelisted function
        b"N"  # NONE: the first state
        b"}"  # EMPTY_DICT: the second state
        b"U\x0c__defaults__"  # SHORT_BINSTRING, of 12 bytes
        b"K\x01"  # BININT1 1
        b"\x85"  # TUPLE1: (1,)
        b"s"  # SETITEM: {"__defaults__": (1,)}
        b"\x86"  # TUPLE2: (None, {"__defaults__": (1,)})
        b"b"  # BUILD: function.__defaults__ = (1,)
        b".",  # STOP
        0,
        {"function (1,)"},
    ),
}
# Loads a file with a whitelist of one harmless function; prints the value or the error,
# and the defaults of that function.
WHITELISTED = """
import pickle, resource, sys

def rebuild(storage, hooks=None):
    return storage

class Whitelisted(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) != ("torch._utils", "_rebuild_tensor_v2"):
            raise pickle.UnpicklingError(name)
        return rebuild

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
with open(sys.argv[1], "rb") as file:
    try:
        value = Whitelisted(file).load()
    except MemoryError:
        value = "MemoryError"
default = rebuild.__defaults__
default = default if default != (None,) else None
print("function" if value is rebuild else value, default)
"""


def test_the_unsafe_files_are_as_short_as_documented():
    assert [len(UNSAFE[what][0]) for what in ("memory", "defaults")] == [10, 58]


@pytest.mark.parametrize("what", UNSAFE)
def test_a_whitelist_does_not_make_unpickling_safe(what, tmp_path):
    content, status, outputs = UNSAFE[what]
    (tmp_path / "a").write_bytes(content)
    command = [sys.executable, "-I", "-c", WHITELISTED, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() in outputs


@pytest.mark.parametrize("what", UNSAFE)
@pytest.mark.parametrize("in_zip", [False, True])
def test_files_that_defeat_a_whitelist_are_refused(what, in_zip, tmp_path):
    path, content = tmp_path / "a", UNSAFE[what][0]
    expected = "a pickle, .*: it was not written by torch.save. Pass a state dict"
    path.write_bytes(content)
    if in_zip:
        expected = "a PyTorch checkpoint: it holds a .* instead of a state dict. Load"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    tracemalloc.start()
    with pytest.raises(UserError, match=expected) as error:
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 40_000_000


# Nonsense, or bytes that exhaust memory or the stack in Python's own unpickler.
HOSTILE = {
    "large memo": b"\x80\x02]r\xff\xff\xff\xff.",
    "large bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "large array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"x.",
    "large text": b"\x80\x02X\xff\xff\xff\x7fx.",
    "large number": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "negative size": b"\x80\x02\x8b\xff\xff\xff\xffx.",
    "long line": b"\x80\x02c" + b"x" * 5_000_000,
    "deep tuple": b"\x80\x02)" + b"\x85" * 30_000 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "deep list": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
    "doubling": b"\x80\x02]" + b"q\x00h\x00\x86" * 60 + b".",
    "deep function": b"\x80\x02)" + b"\x85" * 200_000 + b")R.",
    "deep rebuilding": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n()"
    + b"\x85" * 200_000
    + b"K\x01)}tR.",
    "many": b"\x80\x02" + b"]" * 300_000 + b".",
    "many copies": b"\x80\x02ccollections\nOrderedDict\nq\x00("
    + b"K\x01" * 1000
    + b"tq\x010"
    + b"h\x00h\x01R0" * 1000
    + b"h\x01.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "empty stack": b"\x80\x02a.",
    "below the mark": b"\x80\x02]K\x01(a.",
    "no mark": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x07.",
    "odd items": b"\x80\x02}(K\x01u.",
    "calls a number": b"\x80\x02K\x01)R.",
    "calls a list": b"\x80\x02])R.",
    "builds a tensor of one": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(K\x01K\x01)}tR.",
    "names a number": b"\x80\x04K\x01K\x02\x93.",
    "no storage": b"\x80\x02K\x01Q.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"\x80\x02(ios\nsystem\n.",
    "text protocol": b"(dp0\n.",
    "buffer": b"\x80\x05\x97.",
    "endless": b"\x80\x02]]]",
    "unknown operation": b"\x80\x02\xff.",
    "not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
}
HARMLESS = (
    *("large memo", "deep tuple", "deep key", "deep list", "doubling"),
    *("many copies", "unhashable key"),
)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused_or_harmless(what):
    try:
        outcome = read_pickle(io.BytesIO(HOSTILE[what])).value
    except Unreadable as error:
        outcome = error.reason
    assert isinstance(outcome, list | tuple | dict if what in HARMLESS else str)


@pytest.mark.parametrize("what", ["large memo", "large bytes", "large text", "many"])
def test_hostile_pickles_take_little_memory(what, tmp_path):
    (tmp_path / "a").write_bytes(HOSTILE[what])
    tracemalloc.start()
    # A real file: Python allocates as many bytes as it is asked to read from one.
    with (tmp_path / "a").open("rb") as file, contextlib.suppress(Unreadable):
        read_pickle(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def test_a_pickle_that_contains_itself(tmp_path):
    saved = {"a": 1}
    for key in ("model", "state_dict", "teacher", "net"):
        saved[key] = saved
    _write_zip(tmp_path / "a", saved, [])
    message = r"a dict without tensors \('a', 'model', 'state_dict'"
    with pytest.raises(UserError, match=message):
        open_tensors(tmp_path / "a")


def test_files_without_checksums_are_read(tmp_path):
    """torch.serialization.set_crc32_options(False) writes zeros as checksums."""
    _write_zip(tmp_path / "a", {"a": GOOD}, [STORAGE])
    content = bytearray((tmp_path / "a").read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] == b"PK\1\2":
            content[at + 16 : at + 20] = bytes(4)
    (tmp_path / "a").write_bytes(content)

    np.testing.assert_array_equal(_read(tmp_path / "a")[1]["a"].flat, NUMBERS)


@pytest.mark.parametrize("count", [0, 2])
def test_an_archive_has_one_pickle(count, tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x/mydata.pkl", b"")
        for i in range(count):
            archive.writestr(f"{i}/data.pkl", _pickle({"a": 1}))
    match = "holds 2 pickles instead of one" if count else "it holds no arrays"
    with pytest.raises(UserError, match=match):
        open_tensors(tmp_path / "a")


def test_modules_that_a_pickle_names_are_never_imported(tmp_path):
    name = "antigravity" if "antigravity" not in sys.modules else "this"
    pickled = b"\x80\x02c" + name.encode() + b"\nx\n."
    with pytest.raises(Unreadable, match=name):
        read_pickle(io.BytesIO(pickled))
    assert name not in sys.modules
