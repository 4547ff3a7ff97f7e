"""Checksums of a checkpoint's files, so that a single changed byte is noticed.

Orbax and TensorStore notice a file that is missing or cut short, and not every other
change: what they then read are wrong numbers. MANIFEST.json, in the checkpoint's own
folder, has the length and the CRC-32 of every file; no change of up to 32 bits in a row
keeps a CRC-32.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Collection
from pathlib import Path

MANIFEST = "MANIFEST.json"
_VERSION = 1
# What Orbax writes into the folder after the manifest; no number is read from it.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 2**20  # bytes read at once
_THREADS = 4  # reading and summing leave Python's lock


def write_manifest(folder: Path) -> None:
    """Sums all files of a checkpoint as they are on the disk.

    Raises:
      OSError: a file cannot be read, or the manifest not be written.
    """
    names = [
        path.relative_to(folder).as_posix()
        for path in _files(folder)
        if path.name not in _LATER or path.parent != folder
    ]
    entries = dict(zip(names, _sums(folder, names), strict=True))
    manifest = {"version": _VERSION, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def check_manifest(folder: Path, parts: Collection[str]) -> str:
    """What of some parts of a checkpoint is not as it was written.

    Args:
      folder: the checkpoint.
      parts: of its folders those that matter.

    Returns:
      "" if all is well; else the first file that differs, and how many more do. Also ""
      without a manifest: checkpoints did not always have one.

    Raises:
      OSError: a file cannot be read.
    """
    file = folder / MANIFEST
    if not file.exists():
        return ""
    try:
        manifest = json.loads(file.read_text())
        version, entries = manifest["version"], manifest["files"]
        expected = {
            str(name): (int(length), str(crc))
            for name, (length, crc) in entries.items()
            if name.split("/")[0] in parts
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is no list of checksums"
    if version != _VERSION:
        return f"{MANIFEST} has version {version!r}, not {_VERSION}"
    # A name that was changed in the manifest itself leaves a part without its files.
    problems = [
        f"{MANIFEST} says nothing of {part}"
        for part in parts
        if not any(name.split("/")[0] == part for name in expected)
    ]
    there = {name: (folder / name).exists() for name in expected}
    problems += [f"{name} is missing" for name in expected if not there[name]]
    names = [name for name in expected if there[name]]
    for name, found in zip(names, _sums(folder, names), strict=True):
        if found[0] != expected[name][0]:
            problems.append(f"{name} has {found[0]} bytes, not {expected[name][0]}")
        elif tuple(found) != expected[name]:
            problems.append(f"{name} has changed: its checksum is another")
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def _files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found += _files(path) if path.is_dir() else [path]
    return found


def _sums(folder: Path, names: list[str]) -> list[list]:
    """[length in bytes, CRC-32 as eight hexadecimal digits] of each file."""

    def of(name: str) -> list:
        length = crc = 0
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                length += len(chunk)
                crc = zlib.crc32(chunk, crc)
        return [length, f"{crc:08x}"]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(of, names))
