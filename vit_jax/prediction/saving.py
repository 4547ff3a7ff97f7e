"""The file of results that --out names: its format, and whose results it has."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import filelock

from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.prediction.appending import Appended, Csv, Found, JsonLines
from vit_jax.prediction.inputs import Input
from vit_jax.prediction.parquet import Parquet, check_installed
from vit_jax.prediction.records import Layout, text

SUFFIXES = (".jsonl", ".csv", ".parquet")
# Errors of file systems, mostly in networks, that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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

    def missing(self, images: Iterable[Input], repeated: bool) -> Iterator[Input]:
        """Yields the images without a result, each of them once.

        Args:
          images: all images.
          repeated: whether some may be there twice. Then 16 bytes of each name are
            kept.
        """
        seen = set()
        for image in images:
            digest = _digest(image.name)
            if digest in self._digests or digest in seen:
                continue
            if repeated:
                seen.add(digest)
            yield image

    def compare(
        self, images: Iterable[Input], repeated: bool
    ) -> tuple[int, list[Found]]:
        """Counts the images without a result; returns those whose result is an error.

        The arguments are those of `missing`.
        """
        errors = {_digest(each.image): each for each in self.failed}
        failed: dict[str, Found] = {}

        def noted() -> Iterator[Input]:
            for image in images:
                if found := errors.get(_digest(image.name)):
                    failed[found.image] = found
                yield image

        return sum(1 for _ in self.missing(noted(), repeated)), list(failed.values())


def check_path(path: pathlib.Path) -> None:
    """Raises UserError if no results can be written to such a file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--out={path}: the name must end in .jsonl (JSON lines), .csv or .parquet"
        )
    # os.path does not raise for very long names, pathlib does.
    if os.path.isdir(path):
        raise UserError(f"--out={path} is a folder; pass the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"--out={path} is a pipe or a device; pass the name of a file")
    if path.suffix.lower() == ".parquet":
        check_installed()


@contextlib.contextmanager
def open_results(
    path: pathlib.Path, layout: Layout, weights: dict[str, Any], relative: bool = False
) -> Iterator[tuple[Results, Done]]:
    """Opens a file of results to add to it, and keeps other processes from doing so.

    Yields the file, and the results that it already has.

    What the results were made with is recorded beside the file, in FILE.meta.json.

    Args:
      path: the file, which need not exist; see `check_path`.
      layout: what its results have in common.
      weights: "fingerprint" of the weights, "checkpoint" and "step".
      relative: whether paths of images are relative to the current folder, in which a
        file with results must then have been begun.

    Raises:
      UserError: the file has the results of other weights, or with another top_k, or of
        images in another folder, or was written by something else; or it cannot be
        written, or another process writes to it.
    """
    check_path(path)
    with _locked(path):
        with _usable(path):
            results = _results(path, layout)
            about = path.with_name(f"{path.name}.meta.json")
            record = {"top_k": layout.top_k, "shows": layout.value, **weights}
            # Seen from the file, so that a project may move as a whole.
            here = os.path.relpath(os.getcwd(), os.path.realpath(path.parent))
            record["directory"] = here
            if not _exists(results):
                with atomic_write(about) as temporary:
                    temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            else:
                _check_same(path, about, record, relative)
            done = Done(results.found())
        with results:
            yield results, done


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of a file and keeps other processes from writing the file."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    with _usable(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out={path}: {path.parent} is not a folder") from None
        except filelock.Timeout:
            raise UserError(
                f"another process is writing to {path}; wait for it, or pass another "
                "--out"
            ) from None
        except NotImplementedError:  # some network file systems have no locks
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _usable(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system before anything is written into one of --out."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out={path} cannot be written: {error.strerror or error}; pass another "
            "path"
        ) from error


def _results(path: pathlib.Path, layout: Layout) -> Appended | Parquet:
    if path.suffix.lower() == ".parquet":
        return Parquet(path, layout)
    return Appended(path, Csv(layout) if path.suffix.lower() == ".csv" else JsonLines())


def _exists(results: Appended | Parquet) -> bool:
    files = [results.path]
    if isinstance(results, Parquet):
        files.append(results.journal)
    return any(file.exists() and file.stat().st_size for file in files)


def _check_same(
    path: pathlib.Path, about: pathlib.Path, now: dict[str, Any], relative: bool
) -> None:
    """Raises UserError if the results in a file were made in another way."""
    try:
        before = json.loads(about.read_text("utf-8"))
        names = ("top_k", "shows", "fingerprint", "checkpoint", "step")
        began = before.get("directory") if isinstance(before, dict) else None
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

    if relative and began not in (None, now["directory"]):
        folder = os.path.normpath(os.path.join(os.path.realpath(path.parent), began))
        raise UserError(
            f"{path} was begun in {folder}, so the same relative paths may be other "
            "images here. Run the command there, pass absolute paths, or another --out"
        )


def _digest(image: str) -> bytes:
    data = text(image).encode("utf-8")
    return hashlib.blake2b(data, digest_size=16).digest()
