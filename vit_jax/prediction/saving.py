"""The file of results that --out names: its format, and whose results it has."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import filelock

from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.prediction.appending import Appended, Csv, Found, JsonLines
from vit_jax.prediction.parquet import Parquet, check_installed
from vit_jax.prediction.records import Layout, text

SUFFIXES = (".jsonl", ".csv", ".parquet")


class Results(Protocol):
    """A file of results."""

    path: pathlib.Path

    def found(self) -> Iterator[Found]:
        """Yields the results that it already has."""
        ...

    def write(self, record: dict[str, Any]) -> None:
        """Adds the values of `records.to_json`."""
        ...


class Done:
    """The images whose results are already in a file.

    Attributes:
      count: number of results.
      failed: those that are errors.
    """

    def __init__(self, found: Iterator[Found]):
        """Reads the results; 16 bytes of each name are kept."""
        self._digests: set[bytes] = set()
        self.count = 0
        self.failed: list[Found] = []
        for each in found:
            self._digests.add(_digest(each.image))
            self.count += 1
            if each.error is not None:
                self.failed.append(each)

    def __contains__(self, image: str) -> bool:
        return _digest(image) in self._digests


def check_path(path: pathlib.Path) -> None:
    """Raises UserError if no results can be written to such a file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--out={path}: the name must end in .jsonl (JSON lines), .csv or .parquet"
        )
    if path.is_dir():
        raise UserError(f"--out={path} is a folder; pass the name of a file")
    if path.suffix.lower() == ".parquet":
        check_installed()


@contextlib.contextmanager
def open_results(
    path: pathlib.Path, layout: Layout, weights: dict[str, Any]
) -> Iterator[tuple[Results, Done]]:
    """Opens a file of results to add to it, and keeps other processes from doing so.

    Yields the file, and the results that it already has.

    What the results were made with is recorded beside the file, in FILE.meta.json.

    Args:
      path: the file, which need not exist; see `check_path`.
      layout: what its results have in common.
      weights: "fingerprint" of the weights, "checkpoint" and "step".

    Raises:
      UserError: the file has the results of other weights, or with another top_k, or
        was written by something else; or another process writes to it.
    """
    check_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out={path}: {path.parent} is not a folder") from None
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(
            f"another process is writing to {path}; wait for it, or pass another --out"
        ) from None
    try:
        results = _results(path, layout)
        about = path.with_name(f"{path.name}.meta.json")
        record = {"top_k": layout.top_k, "shows": layout.value, **weights}
        if not _exists(results):
            with atomic_write(about) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        else:
            _check_same(path, about, record)
        done = Done(results.found())
        with results:
            yield results, done
    finally:
        lock.release()


def _results(path: pathlib.Path, layout: Layout) -> Appended | Parquet:
    if path.suffix.lower() == ".parquet":
        return Parquet(path, layout)
    return Appended(path, Csv(layout) if path.suffix.lower() == ".csv" else JsonLines())


def _exists(results: Appended | Parquet) -> bool:
    files = [results.path]
    if isinstance(results, Parquet):
        files.append(results.journal)
    return any(file.exists() and file.stat().st_size for file in files)


def _check_same(path: pathlib.Path, about: pathlib.Path, now: dict[str, Any]) -> None:
    """Raises UserError if the results in a file were made in another way."""
    try:
        before = json.loads(about.read_text("utf-8"))
        names = ("top_k", "shows", "fingerprint", "checkpoint", "step")
        before = {name: before[name] for name in names}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"{path} exists, but {about.name} beside it does not say how its results "
            "were made, so it cannot be continued; remove it, or pass another --out"
        ) from None
    if before["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"{path} has results of other weights: {before['checkpoint']} at step "
            f"{before['step']}, now {now['checkpoint']} at step {now['step']}. Pass "
            "another --out, or remove the file"
        )
    if before["top_k"] != now["top_k"] or before["shows"] != now["shows"]:
        raise UserError(
            f"{path} has the first {before['top_k']} classes of each image, now the "
            f"first {now['top_k']} are wanted. Pass --top_k={before['top_k']} or "
            "another --out"
        )


def _digest(image: str) -> bytes:
    data = text(image).encode("utf-8")
    return hashlib.blake2b(data, digest_size=16).digest()
