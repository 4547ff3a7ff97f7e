"""Work directories in buckets, gs:// and s3://, by etils' paths.

A bucket has no locks, cannot rename and cannot append; but an object is written
completely or not at all. So Orbax marks a complete checkpoint by a file in it, and a
run keeps what it appends to in memory and writes it whole before each checkpoint.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any, cast

from vit_jax.errors import UserError

# Scheme → the package that reads and writes it, and our extra that has it.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# Orbax writes it last, where a checkpoint has its final name from the start.
_COMMITTED = "commit_success.txt"


def bucket_path(address: str) -> Path:
    """A path in a bucket; it has most methods of pathlib's.

    Raises:
      UserError: no such kind of address, or its package is not installed.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in _PACKAGES or not rest.strip("/"):
        raise UserError(
            f"{address}: expected the path of a folder, gs://BUCKET/FOLDER or "
            "s3://BUCKET/FOLDER"
        )
    package, extra = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{address}: {scheme}:// needs {package}; pip install 'vit_jax[{extra}]'"
        )
    from etils import epath

    return cast(Path, epath.Path(address.rstrip("/")))


def in_bucket(path: object) -> bool:
    """Whether a path, or its text, is one of a bucket."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in _PACKAGES))


def is_complete(checkpoint: Path) -> bool:
    """Whether all of it was written, as far as its name does not say so."""
    return not in_bucket(checkpoint) or (checkpoint / _COMMITTED).exists()


def is_folder(path: Path) -> bool:
    """Whether it is there; in a bucket an empty folder is not, and need not be."""
    return in_bucket(path) or path.is_dir()


def remove(folder: Path) -> None:
    """Removes a folder as far as that is possible."""
    if in_bucket(folder):
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path, target: Path) -> None:
    """Renames a folder; in a bucket each of its objects is copied."""
    if in_bucket(folder):
        _copy(folder, target)
        remove(folder)
    else:
        folder.rename(target)


def _copy(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            cast(Any, path).copy(target / path.name, overwrite=True)
