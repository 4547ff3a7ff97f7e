"""A run's directory: claiming it for one config, and writing small files safely."""

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock

from vit_jax.checkpoints.buckets import bucket_path, in_bucket
from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.words import shortened

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
METRICS_FILE = "metrics.jsonl"
_LOCK = ".lock"


def locate(workdir: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a work directory, which may not exist yet.

    Orbax accepts only absolute paths, and people type relative ones.

    Args:
      workdir: a path, or gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

    Raises:
      UserError: another kind of address, which as a path would silently become a local
        folder, or an empty name.
    """
    text = os.fspath(workdir)
    if "://" in text:
        return bucket_path(text)
    if not text:
        raise UserError(
            "the work directory's name is empty; pass the path of a folder."
        )
    return Path(os.path.abspath(os.path.expanduser(text)))


def claim(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    free: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> contextlib.AbstractContextManager[Any]:
    """Claims `workdir` for the run that `config` describes.

    The first run creates the directory and writes config.json before anything else. A
    later run must have the same config except for the keys that are free to change;
    config.json then gets their new values. A directory in which nothing was trained
    yet (a first try that failed early) may be claimed with any config.

    Args:
      workdir: the directory, which may not exist yet.
      config: nested, of values JSON can hold; tuples equal lists.
      free: dotted names of keys whose values may differ from the saved ones.
      defaults: nested too; the values of keys that older versions did not write.

    Returns:
      A lock. Nobody else can claim the directory until it is released or the process
      ends: two runs that write there would destroy each other's metrics. A bucket has
      no locks, so a second run is not noticed there.

    Raises:
      UserError: the directory belongs to another run (names the keys that differ), is
        in use by a running one, or cannot be written to; or `workdir` is a file.
    """
    directory = locate(workdir)
    config = normalised(config)
    file = directory / CONFIG_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # releases the lock if anything is wrong
            stack.enter_context(_lock(directory))
            _take(directory, file, config, free, normalised(dict(defaults)))
            return stack.pop_all()
    except FileExistsError as error:
        raise UserError(
            f"work directory {directory}: {error.filename} is a file, expected a "
            "folder; pass another --workdir."
        ) from None
    except OSError as error:
        raise UserError(
            f"work directory {directory} cannot be written to "
            f"({error.strerror or error}); make it writable or pass another --workdir."
        ) from None


def recorded_config(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the config of the run that was begun in a directory; None if none was.

    Raises:
      UserError: its config.json cannot be read.
    """
    directory = locate(workdir)
    file = directory / CONFIG_FILE
    return _read_config(file) if file.exists() and _trained(directory) else None


def check_shared(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Checks in a run's other processes that the first has claimed this directory.

    Raises:
      UserError: this process does not see its config.json, or sees another config.
    """
    directory = locate(workdir)
    file = directory / CONFIG_FILE
    if not file.exists():
        raise UserError(
            f"{file}, which the first process of this run wrote, does not exist here; "
            "put the work directory on a file system that all processes share."
        )
    _compare(directory, _read_config(file), normalised(config))


def _take(
    directory: Path,
    file: Path,
    config: Mapping[str, Any],
    free: Collection[str],
    defaults: Mapping[str, Any],
) -> None:
    """Checks the directory's config and writes the new one if it differs."""
    if file.exists() and _trained(directory):
        before = _read_config(file)
        changed = _compare(directory, before, config, free, defaults)
        _check_writable(directory)
        if changed:
            logger.info("continuing with changed values: %s", ", ".join(changed))
        if before != config:
            write_atomically(file, json.dumps(config, indent=2) + "\n")
    elif _holds_steps(directory):
        raise UserError(
            f"{directory} holds checkpoints but no {CONFIG_FILE}, so their run is "
            "unknown; restore the file or pass another --workdir."
        )
    else:
        write_atomically(file, json.dumps(config, indent=2) + "\n")


def _lock(directory: Path) -> contextlib.AbstractContextManager[Any]:
    if in_bucket(directory):
        return contextlib.nullcontext()
    lock = filelock.FileLock(directory / _LOCK)
    try:
        return lock.acquire(blocking=False)
    except NotImplementedError:  # some network file systems have no locks
        return contextlib.nullcontext()
    except filelock.Timeout:
        raise UserError(
            f"{directory} is in use: another run is writing to it. Wait for that run, "
            "stop it (it saves on SIGTERM), or pass another --workdir."
        ) from None


def write_atomically(file: Path, text: str) -> None:
    """Writes `text` so that a kill or a full disk leaves the old file or the new one.

    Raises:
      OSError: writing failed; the old file is unchanged.
    """
    if in_bucket(file):
        file.write_text(text)
        return
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """Passes `config` through JSON, which turns tuples into lists.

    Raises:
      TypeError: a value that JSON cannot hold.
    """
    return json.loads(json.dumps(config))


def _trained(directory: Path) -> bool:
    """Returns whether a run has written metrics or checkpoints here."""
    metrics = directory / METRICS_FILE
    written = metrics.exists() and metrics.read_bytes() != b""
    return written or _holds_steps(directory)


def _holds_steps(directory: Path) -> bool:
    folder = directory / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    except ValueError:
        pass
    raise UserError(
        f"{file} is not the config of a run (not a JSON object); restore the right "
        "file or pass another --workdir."
    )


def _compare(
    directory: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    free: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Lists the free keys that differ; raises UserError if any other key does."""
    # Compared as text, so that True differs from 1 and NaN equals NaN.
    before = {key: json.dumps(value) for key, value in (*_flat(defaults), *_flat(old))}
    after = {key: json.dumps(value) for key, value in _flat(new)}
    # Sections with keys are compared key by key; an empty section counts as a key.
    sections = {
        key[: dot.start()]
        for key in (*before, *after)
        for dot in re.finditer(r"\.", key)
    }
    told = {
        key: f"{key}: {before.get(key, '(absent)')} → {after.get(key, '(absent)')}"
        for key in sorted((before.keys() | after.keys()) - sections)
        if before.get(key) != after.get(key)
    }
    fixed = [text for key, text in told.items() if not is_among(key, free)]
    if not fixed:
        return list(told.values())
    count = "1 key differs" if len(fixed) == 1 else f"{len(fixed)} keys differ"
    listed = shortened(fixed, separator="\n  ")
    raise UserError(
        f"{directory} belongs to a run with another config; {count} (there → here):\n"
        f"  {listed}\nTo continue that run, pass its values; to start this one, pass "
        "another --workdir (or remove that directory)."
    )


def is_among(key: str, keys: Collection[str]) -> bool:
    """Returns whether a dotted key, or a section that contains it, is in `keys`."""
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in keys for n in range(len(parts)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_writable(directory: Path) -> None:
    probe = directory / f".{uuid.uuid4().hex}.tmp"
    probe.write_bytes(b"")
    probe.unlink()
