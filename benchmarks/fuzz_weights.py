"""Fuzz test of the readers of weight files and .npz data sets.

    python benchmarks/fuzz_weights.py --count=10000 --seed=0

Each damaged file must be read or rejected with UserError, using no more memory than
four times the tensors of the undamaged file plus 64 MB. Case i of a kind depends only
on the seed and i. Exits with 1 if a case fails, and prints how.
"""

import argparse
import functools
import io
import json
import logging
import pathlib
import random
import re
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save

from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.array_files import npz
from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.files.recognise import is_safetensors, is_zip
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden"
SHARD = "shard.safetensors"  # is next to every damaged file
ALLOWED_BESIDE = 64_000_000
MOST_SHOWN = 5


class Kind(NamedTuple):
    """A kind of file to damage, and how to read it.

    `lines` is the most that a message may have: a model's report lists tensors that are
    missing, unexpected or have the wrong shape.
    """

    make: Callable[[], bytes]
    read: Callable[[pathlib.Path], list[np.ndarray]]
    lines: int = 1


class Result(NamedTuple):
    """The outcome for the damaged files of one kind."""

    kind: str
    read: int
    refused: int
    failures: list[str]  # one line per failure
    slowest: float  # seconds
    peak: int  # bytes, of Python and NumPy, of the worst file
    allowed: int
    seconds: float


def fuzz(kind: str, count: int, seed: int) -> Result:
    """Reads `count` damaged files of a kind."""
    make, read, lines = KINDS[kind]
    original = make()
    counts = {"read": 0, "refused": 0}
    failures, slowest, worst = [], 0.0, 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights"
        path.with_name(SHARD).write_bytes(_safetensors())
        path.write_bytes(original)
        allowed = 4 * sum(array.nbytes for array in read(path)) + ALLOWED_BESIDE
        tracemalloc.start()
        for i in range(count):
            path.write_bytes(damaged(original, random.Random(f"{seed} {kind} {i}")))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                read(path)
                counts["read"] += 1
            except UserError as error:
                counts["refused"] += 1
                if str(error).count("\n") >= lines or len(str(error)) > 3000:
                    failures.append(f"case {i}: a message of too many lines")
            # Anything else is a failure, including a panic of the Rust library.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"case {i}: {type(error).__name__}: {error}"[:300])
            slowest = max(slowest, time.perf_counter() - start)
            peak = tracemalloc.get_traced_memory()[1] - before
            worst = max(worst, peak)
            if peak > allowed:
                failures.append(f"case {i}: {peak:,} bytes")
        tracemalloc.stop()
    seconds = time.perf_counter() - began
    return Result(kind, *counts.values(), failures, slowest, worst, allowed, seconds)


def damaged(original: bytes, rng: random.Random) -> bytes:
    """Damages a file in one to three places.

    In half of the cases an archive is damaged within a member and zipped again, because
    its checksums would find most other damage; and a safetensors file within its
    header, whose length is then corrected.
    """
    for matches, mend in ((is_zip, _rezipped), (is_safetensors, _reheaded)):
        if matches(original) and rng.random() < 0.5:
            return mend(original, rng)
    return _damaged(original, rng)


def _read_tensors(path: pathlib.Path) -> list[np.ndarray]:
    with open_tensors(path) as tensors:
        return [tensors.read(name) for name in tensors.specs]


def _read_model(path: pathlib.Path) -> list[np.ndarray]:
    return jax.tree.leaves(load_weights(path).params)


def _read_data_set(path: pathlib.Path) -> list[np.ndarray]:
    return [npz.read(str(path), name) for name in npz.headers(str(path))]


def _damaged(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(DAMAGES)(data, rng)
    return data


def _rezipped(original: bytes, rng: random.Random) -> bytes:
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(original)) as source,
        zipfile.ZipFile(target, "w") as archive,
    ):
        chosen = rng.choice(source.namelist())
        for info in source.infolist():
            content = source.read(info)
            if info.filename == chosen or info.filename.endswith(".pkl"):
                content = _damaged(content, rng)
            archive.writestr(info.filename, content, info.compress_type)
    return target.getvalue()


def _reheaded(original: bytes, rng: random.Random) -> bytes:
    start = 8 + struct.unpack("<Q", original[:8])[0]
    header = original[8:start]
    # Three times out of four where it describes a model, so that it stays readable.
    found = re.search(rb'\\"(architecture|model_args)\\": \{.*?\}', header)
    if found and rng.random() < 0.75:
        first, last = found.span()
        told = header[first:last]
        for _ in range(rng.randint(1, 2)):
            told = rng.choice((_digits, _digits, _nothing))(told, rng)
        header = header[:first] + told + header[last:]
    else:
        header = _damaged(header, rng)
    return struct.pack("<Q", len(header)) + header + original[start:]


def _position(data: bytes, rng: random.Random) -> int:
    """Chooses a position, more often where headers and directories are."""
    near = rng.choice((len(data), 64, 1024, -64, -1024))
    if near < 0:
        return max(0, len(data) - 1 - rng.randrange(-near))
    return rng.randrange(max(1, min(len(data), near)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[_position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at = _position(data, rng)
    new = rng.randbytes(rng.randint(1, 16))
    return data[:at] + new + data[at + len(new) :]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Writes a number that breaks sums: 0, the largest, the sign bit …"""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2, 255, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -1))
    new = struct.pack("<Q", value & ((1 << 64) - 1))[:size]
    at = _position(data, rng)
    return data[:at] + new + data[at + size :]


def _digits(data: bytes, rng: random.Random) -> bytes:
    """Changes a number in a text, such as a shape in a header."""
    runs = list(re.finditer(rb"\d+", data[: 1 << 16]))
    if not runs:
        return data
    run = rng.choice(runs)
    new = rng.choice((b"0", b"-1", b"7", b"99999", b"4294967296", b"9" * 19, b"1e3"))
    return data[: run.start()] + new + data[run.end() :]


def _nothing(data: bytes, rng: random.Random) -> bytes:
    """Puts a number, or numbers, where a text says that there are none."""
    new = rng.choice((b"7", b"[3000]", b"[1, 1, 2]", b"[]"))
    return data.replace(b"null", new, 1)


def _digits_in_place(data: bytes, rng: random.Random) -> bytes:
    """Changes a number in a text without moving anything behind it."""
    runs = list(re.finditer(rb"\d+", data[: 1 << 16]))
    if not runs:
        return data
    start, stop = rng.choice(runs).span()
    new = "".join(rng.choices("0123456789", k=stop - start)).encode()
    return data[:start] + new + data[stop:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: random.Random) -> bytes:
    at = _position(data, rng)
    return data[:at] + data[at + rng.randint(1, 64) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _position(data, rng)
    return data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Copies a piece of the file over others, or between them."""
    source, at = _position(data, rng), _position(data, rng)
    piece = data[source : source + rng.randint(1, 256)]
    return data[:at] + piece + data[at + rng.choice((0, len(piece))) :]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _flip,
    _overwrite,
    _number,
    _number,
    _digits,
    _digits_in_place,
    _cut,
    _remove,
    _insert,
    _splice,
]


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "embedding/kernel": rng.normal(size=(4, 4, 3, 8)).astype(np.float32),
        "embedding/bias": np.zeros(8, np.float32),
        "block/kernel": rng.normal(size=(8, 16)).astype(np.float16),
        "head/kernel": np.asfortranarray(rng.normal(size=(8, 5))),
        "step": np.array(7, ">i8"),
    }


def _npz(save) -> bytes:
    file = io.BytesIO()
    save(file, **_arrays(), brief=np.zeros(6, "V2"))
    return file.getvalue()


def _safetensors() -> bytes:
    arrays = {
        name: np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
        for name, array in _arrays().items()
    }
    return save(arrays, {"format": "pt"})


def _index() -> bytes:
    weight_map = dict.fromkeys(_arrays(), SHARD)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode()


def _model(format: str, suffix: str = "") -> bytes:
    """Returns a small model's file; for formats with directories, its weights."""
    architecture = Architecture(
        width=64,
        depth=2,
        mlp_dim=8,
        num_heads=1,
        patch_size=(2, 2),
        image_size=(4, 4),
        num_classes=3,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    description = Description(
        architecture, Preprocessing((4, 4)), (), to_plain(default_config()), step=0
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"model{suffix}")
        saved = save_weights(description, params, path, format)
        return (saved / "model.safetensors" if saved.is_dir() else saved).read_bytes()


# Plain files of tensors, and models in them.
KINDS: dict[str, Kind] = {
    "npz": Kind(lambda: _npz(np.savez), _read_tensors),
    "npz, deflated": Kind(lambda: _npz(np.savez_compressed), _read_tensors),
    "npz of a data set": Kind(lambda: _npz(np.savez), _read_data_set, 10),
    "the same, deflated": Kind(lambda: _npz(np.savez_compressed), _read_data_set, 10),
    "safetensors": Kind(_safetensors, _read_tensors),
    "index of shards": Kind(_index, _read_tensors),
    "torch": Kind((GOLDEN / "torch_zip.pth").read_bytes, _read_tensors),
    "torch, protocol 4": Kind(
        (GOLDEN / "torch_protocol4.pth").read_bytes, _read_tensors
    ),
    "torch before 1.6": Kind((GOLDEN / "torch_legacy.pth").read_bytes, _read_tensors),
    **{
        kind: Kind(functools.partial(_model, format, suffix), _read_model, 5)
        for kind, format, suffix in (
            ("google model", "google", ".npz"),
            ("big_vision model", "big_vision", ".npz"),
            ("timm model", "timm", ""),
            ("timm file", "timm", ".safetensors"),
            ("huggingface model", "huggingface", ""),
            ("vit_jax model", "vit_jax", ".safetensors"),
        )
    },
}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_memory() -> None:
    """Makes this process fail rather than take more than the largest allowance."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    # Twice as much, for the bookkeeping of tracemalloc and of the C library.
    limit = pages * resource.getpagesize() + 2 * ALLOWED_BESIDE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    logging.getLogger("vit_jax").setLevel(logging.ERROR)
    fuzz("npz", 1, 0)  # triggers late imports
    _limit_memory()
    title = f"{'kind':<18}{'read':>7}{'refused':>9}{'failed':>8}{'slowest':>10}"
    print(f"{title}{'peak':>10}{'RSS grew':>10}{'seconds':>9}")
    failed = False
    for kind in options.kinds:
        before = _resident()
        result = fuzz(kind, options.count, options.seed)
        print(
            f"{kind:<18}{result.read:>7}{result.refused:>9}{len(result.failures):>8}"
            f"{result.slowest * 1e3:>7.0f} ms{result.peak / 1e6:>7.1f} MB"
            f"{(_resident() - before) / 1e6:>7.1f} MB{result.seconds:>9.0f}",
            flush=True,
        )
        for line in result.failures[:MOST_SHOWN]:
            print(f"  {line}")
        failed |= bool(result.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
