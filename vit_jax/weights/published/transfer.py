"""Download of one address to one path, with retries, resuming and checks."""

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import filelock
import requests
import urllib3

from vit_jax import web
from vit_jax.errors import UserError
from vit_jax.files import move_into_place
from vit_jax.weights.files.recognise import recognise
from vit_jax.weights.files.tensors import open_tensors

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

_RETRY = web.RETRY
_TORCH = ("a PyTorch checkpoint", "a pickle")
# Suffix → how the description by `recognise` must begin.
_KINDS = {
    ".npz": ("a NumPy archive",),
    ".safetensors": ("a safetensors file",),
    ".bin": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
}


class TransferError(Exception):
    """A failed download; `status` gives the reason in a few words."""

    def __init__(self, url: str, status: str):
        super().__init__(f"{web.shown(url)}: {status}")
        self.url, self.status = url, status


class MissingFile(TransferError):
    """A failed download because the server has no such file."""


class _Note(NamedTuple):
    """The facts that are needed to resume a partial file, stored beside it as JSON."""

    validator: str = ""  # ETag or date; without one the download cannot be resumed
    length: int | None = None  # of the whole file
    checksums: Mapping[str, str] = {}  # algorithm → the server's, in hexadecimal


def transfer(
    url: str,
    path: pathlib.Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Downloads a file unless it exists; it appears only when complete and checked.

    The checks are: its length, its SHA-256 or MD5 if one is given, the checksums that
    the server sends (Google's and Hugging Face's do), whether its content fits its
    suffix, and whether it can be read. An interrupted download is resumed, even by a
    later process, if the file has not changed. If several threads or processes want a
    file, one downloads and the others wait.

    Args:
      url: an https address; http is allowed only for this machine.
      path: the destination.
      sha256: the expected checksum in hexadecimal, or the beginning of it.
      md5: the same of another algorithm, which old publishers used.
      headers: HTTP headers, sent only to the host of `url`.

    Returns:
      The file's SHA-256; "" if it existed already.

    Raises:
      TransferError: the file does not exist (`MissingFile`), the server does not send
        it, or a check fails.
      OSError: the file cannot be written.
    """
    if problem := web.insecure(url):
        raise TransferError(url, problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    note = path.with_name(f"{path.name}.partial.json")
    with _alone(path):
        if path.is_file():
            return ""
        try:
            with (
                partial.open("ab") as file,
                web.session(headers or {}, _RETRY) as session,
            ):
                learned = _complete(session, url, file, note)
        except TransferError:
            if not partial.stat().st_size:  # nothing to continue
                partial.unlink()
            raise
        given = {"sha256": sha256, "md5": md5}
        checksums = {**learned.checksums, **{k: v for k, v in given.items() if v}}
        problem = (
            _wrong_length(partial, learned.length)
            or _wrong_kind(partial, path.name)
            or wrong_checksum(partial, checksums)
            or _unreadable(partial, path.name)
        )
        if problem:
            partial.unlink()
            note.unlink(missing_ok=True)
            raise TransferError(url, problem)
        digest = _digest(partial, "sha256")
        move_into_place(partial, path)
        note.unlink(missing_ok=True)
        return digest


def wrong_checksum(path: pathlib.Path, expected: Mapping[str, str]) -> str:
    """Describes the first checksum of a file that differs; "" if all match.

    Args:
      path: the file.
      expected: algorithm → checksum in hexadecimal, or the beginning of it.
    """
    for algorithm, value in expected.items():
        digest = _digest(path, algorithm)
        if not digest.startswith(value.lower()):
            name = {"sha256": "SHA-256"}.get(algorithm, algorithm.upper())
            return f"its {name} is {digest}, expected {value}"
    return ""


def _complete(
    session: requests.Session, url: str, file: BinaryIO, note_path: pathlib.Path
) -> _Note:
    """Appends to the file until it is complete; retries while it makes progress."""
    note = _read_note(note_path)
    retry, furthest = _RETRY, _size(file)
    with _progress() as progress:
        task = progress.add_task(
            note_path.name.removesuffix(".partial.json"), total=None
        )
        while True:
            if not note.validator:
                file.truncate(0)
            start = _size(file)
            if start and start == note.length:  # complete; only the checks are missing
                return note
            with _ask(session, url, start, note) as response:
                if response.status_code != 206:
                    file.truncate(0)
                    note = _new_note(response)
                    note_path.write_text(json.dumps(note._asdict()), "utf-8")
                progress.update(task, total=note.length, completed=_size(file))
                try:
                    for piece in response.iter_content(web.PIECE):
                        file.write(piece)
                        progress.advance(task, len(piece))
                    return note
                except requests.RequestException as error:
                    cause = web.cause(error)
            if _size(file) > furthest:  # progress resets the retries
                retry, furthest = _RETRY, _size(file)
            try:
                broken = urllib3.exceptions.ProtocolError(cause)
                retry = retry.increment("GET", url, error=broken)
            except urllib3.exceptions.HTTPError:
                raise TransferError(url, f"interrupted: {cause}") from None
            retry.sleep()


def _ask(
    session: requests.Session, url: str, start: int, note: _Note
) -> requests.Response:
    """Requests the whole file (status 200), or the rest of the noted one (206)."""
    resume = {"Range": f"bytes={start}-", "If-Range": note.validator} if start else {}
    try:
        response = session.get(url, headers=resume, stream=True, timeout=web.TIMEOUT)
    except requests.RequestException as error:
        raise TransferError(url, f"no response: {web.cause(error)}") from None
    except ValueError as error:
        raise TransferError(url, f"redirects to an invalid address ({error})") from None
    for step in (*response.history, response):
        if problem := web.insecure(step.url):
            response.close()
            raise TransferError(url, problem)
    status, described = response.status_code, response.headers
    encoded = described.get("Content-Encoding", "identity") != "identity"
    if status == 200 and not encoded:
        return response
    continued = described.get("Content-Range", "") == (
        f"bytes {start}-{(note.length or 0) - 1}/{note.length}"
    )
    if status == 206 and start and continued:
        return response
    response.close()
    if start and status in (206, 416):  # the range does not fit: another file
        return _ask(session, url, 0, note)
    error = MissingFile if status == 404 else TransferError
    raise error(url, f"{status} {response.reason or ''}{' encoded' * encoded}".strip())


def _new_note(response: requests.Response) -> _Note:
    etag = response.headers.get("ETag", "")
    if etag.startswith("W/"):  # a weak ETag does not guarantee equal bytes
        etag = ""
    length = response.headers.get("Content-Length", "")
    return _Note(
        etag or response.headers.get("Last-Modified", ""),
        int(length) if length.isdecimal() else None,
        _checksums(response),
    )


def _checksums(response: requests.Response) -> dict[str, str]:
    """Reads the server's checksums: Google sends MD5, Hugging Face SHA-256."""
    found = {}
    if md5 := re.search(r"\bmd5=([\w+/]+=*)", response.headers.get("x-goog-hash", "")):
        with contextlib.suppress(ValueError):
            found["md5"] = base64.b64decode(md5[1], validate=True).hex()
    for step in (*response.history, response):
        etag = step.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", etag):
            found["sha256"] = etag
    return found


def _read_note(path: pathlib.Path) -> _Note:
    """Reads the note of an earlier process; returns an empty one if it is unusable."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        note = _Note(**fields)
        known = {*note.checksums} <= {"md5", "sha256"}
    except (OSError, ValueError, TypeError):
        return _Note()
    return note if known and isinstance(note.validator, str) else _Note()


def _wrong_length(path: pathlib.Path, length: int | None) -> str:
    size = path.stat().st_size
    if length in (None, size):
        return ""
    return f"{size:,} bytes received, expected {length:,}"


def _wrong_kind(path: pathlib.Path, name: str) -> str:
    """Describes a file whose content does not fit its name; "" if it fits."""
    ending = pathlib.PurePath(name).suffix
    if ending == ".json":
        try:
            json.loads(path.read_bytes())
            return ""
        except (ValueError, RecursionError):
            return f"received {recognise(path)}, expected JSON"
    expected = _KINDS.get(ending) or tuple(sum(_KINDS.values(), ()))
    found = recognise(path)
    if found.startswith(expected):
        return ""
    return f"received {found}, expected {' or '.join(dict.fromkeys(expected))}"


def _unreadable(path: pathlib.Path, name: str) -> str:
    """Explains why a file of the right kind and length cannot be read; "" if it can."""
    if name.endswith(".json"):
        return ""
    try:
        with open_tensors(path) as tensors:
            # Reading a safetensors file would prove nothing more: it has no checksums,
            # and opening it has compared all sizes.
            for tensor in () if tensors.kind == "safetensors" else tensors.specs:
                tensors.read(tensor)
    except UserError as error:
        # The cause, because the error's text names the partial file and a remedy.
        return f"the received file cannot be read: {error.__cause__ or error}"
    return ""


def _digest(path: pathlib.Path, algorithm: str) -> str:
    with path.open("rb") as file:
        # MD5 serves to find damage, not forgery, so it is allowed even in FIPS mode.
        new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
        return hashlib.file_digest(file, new).hexdigest()


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Locks a file against other threads and processes that download it."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        logger.info("waiting for another download of %s", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress() -> Iterator["Progress"]:
    """Shows a progress bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress
