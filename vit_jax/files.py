"""Atomic writes: files and folders are written completely or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

_LONGEST = 40  # characters of the final name in the temporary one: names have a limit


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, *, sync: bool = True) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, and renames it at the end of the block.

    The block creates a file there, which may replace an old one, or a folder, which may
    replace an empty one. If the block fails, its file or folder is removed. A kill can
    leave it behind, hidden and with a name that ends in .tmp. Several processes may
    write the same path at once; the last one wins.

    Args:
      path: the final path, in a folder that exists.
      sync: see `move_into_place`.

    Raises:
      OSError: the file cannot be written; `path` is unchanged.
    """
    # A random name, because other threads and processes may write the same path.
    temporary = path.with_name(f".{path.name[:_LONGEST]}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        move_into_place(temporary, path, sync=sync)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise


def move_into_place(
    temporary: pathlib.Path, path: pathlib.Path, *, sync: bool = True
) -> None:
    """Gives a complete file or folder its final name.

    Args:
      temporary: its current path, on the same file system.
      path: its final path; see `atomic_write`.
      sync: write the content to the disk first. Without it, a power failure may leave a
        file of that name with other content: only for files that are verified when
        they are read.

    Raises:
      OSError: the move failed; nothing was moved.
    """
    if sync:
        _sync(temporary)
    os.replace(temporary, path)
    if sync:
        _sync_names(path.parent)


def _sync(path: pathlib.Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
        _sync_names(path)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _sync_names(folder: pathlib.Path) -> None:
    """Makes a rename survive a power failure, if the file system supports that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
