"""Checksums of a checkpoint's files, which reveal a single changed byte.

Orbax and TensorStore detect a file that is missing or cut short, but not every other
change, and then read wrong numbers. MANIFEST.json, in the checkpoint's own folder,
has the length and the CRC-32 of every file; a CRC-32 detects every change that lies
within 32 consecutive bits.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Collection
from pathlib import Path

MANIFEST = "MANIFEST.json"
_VERSION = 1
# Orbax writes these files after the manifest; no numbers are read from them.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 2**20  # bytes per read
_THREADS = 4  # reading and computing the CRC release the GIL


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files of a checkpoint as they are on the disk.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
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
    """Compares the files of some parts of a checkpoint with the manifest.

    Args:
      folder: the checkpoint.
      parts: names of the folders to check.

    Returns:
      "" if all files match; otherwise the first difference, and how many more there
      are. Also "" without a manifest, which old checkpoints do not have.

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
        return f"{MANIFEST} is not a list of checksums"
    if version != _VERSION:
        return f"{MANIFEST} has version {version!r}, not {_VERSION}"
    # A changed name in the manifest itself would leave a part without entries.
    problems = [
        f"{MANIFEST} lists no files of {part}"
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
            problems.append(f"{name} has changed: its checksum differs")
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def _files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found += _files(path) if path.is_dir() else [path]
    return found


def _sums(folder: Path, names: list[str]) -> list[list]:
    """Returns [length in bytes, CRC-32 as eight hexadecimal digits] for each file."""

    def of(name: str) -> list:
        length = crc = 0
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                length += len(chunk)
                crc = zlib.crc32(chunk, crc)
        return [length, f"{crc:08x}"]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(of, names))
