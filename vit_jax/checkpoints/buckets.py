"""Work directories in buckets, gs:// and s3://, by etils' paths.

A bucket has no locks, cannot rename and cannot append; but an object is written
completely or not at all. So Orbax marks a complete checkpoint by a file in it, and a
run keeps what it appends to in memory and writes it whole before each checkpoint.
"""

import contextlib
import functools
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
      UserError: no such kind of address, its package is not installed, or the bucket
        cannot be reached.
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
    import fsspec.config
    from etils import epath

    # Otherwise a process goes on seeing what others have moved away.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    if scheme == "s3":
        from vit_jax.checkpoints import s3

        s3.teach_orbax()
    path = cast(Path, epath.Path(address.rstrip("/")))
    _ask(path)
    return path


@functools.cache
def _ask(path: Path) -> None:
    """Asks the service once, so that it is known before anything is computed.

    Raises:
      UserError: nobody is there, credentials are missing or wrong, or there is no such
        bucket, which would be created.
    """
    scheme, _, rest = str(path).partition("://")
    bucket = type(path)(f"{scheme}://{rest.partition('/')[0]}")
    there = True
    try:
        if not path.exists():
            with contextlib.suppress(PermissionError):  # it has, for what is in it
                there = bucket.exists()
    except Exception as error:  # of botocore, aiohttp, google.auth and others
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{path} cannot be reached ({why}); check the credentials and the "
            "connection, or pass a --workdir on a disk."
        ) from error
    if not there:
        raise UserError(
            f"{path}: there is no bucket {bucket}; create it, or name another"
        )


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
