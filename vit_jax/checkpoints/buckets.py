"""Work directories in buckets (gs:// and s3://), accessed through etils.epath.

A bucket has no locks and can neither rename nor append, but an object is written
completely or not at all. Orbax therefore marks a complete checkpoint with a file in it,
and a run keeps the files that it appends to in memory and rewrites them before each
checkpoint.
"""

import contextlib
import functools
import importlib.util
import shutil
from pathlib import Path
from typing import Any, cast

from vit_jax.errors import UserError

# Scheme → the package that handles it, and our extra that installs that package.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# Orbax writes this file last where a checkpoint has its final name from the start.
_COMMITTED = "commit_success.txt"


def bucket_path(address: str) -> Path:
    """Returns a path in a bucket, with most methods of pathlib.Path.

    Raises:
      UserError: the scheme is unknown, its package is not installed, or the bucket
        does not exist or cannot be reached.
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

    # With the cache a process would keep seeing files that others have moved away.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    if scheme == "s3":
        from vit_jax.checkpoints import s3

        s3.teach_orbax()
    path = cast(Path, epath.Path(address.rstrip("/")))
    _ask(path)
    return path


@functools.cache
def _ask(path: Path) -> None:
    """Contacts the service once, so that a run fails before anything is computed.

    Raises:
      UserError: the service does not answer, credentials are missing or wrong, or the
        bucket does not exist and would be created.
    """
    scheme, _, rest = str(path).partition("://")
    bucket = type(path)(f"{scheme}://{rest.partition('/')[0]}")
    there = True
    try:
        if not path.exists():
            # Access may be granted to the objects of a bucket, not to the bucket.
            with contextlib.suppress(PermissionError):
                there = bucket.exists()
    except Exception as error:  # from botocore, aiohttp, google.auth and others
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{path} cannot be reached ({why}); check the credentials and the "
            "connection, or pass a --workdir on a disk."
        ) from error
    if not there:
        raise UserError(
            f"{path}: there is no bucket {bucket}; create it, or pass another"
        )


def in_bucket(path: object) -> bool:
    """Returns whether a path, or its text, is in a bucket."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in _PACKAGES))


def is_complete(checkpoint: Path) -> bool:
    """Returns whether a checkpoint with its final name was written completely."""
    return not in_bucket(checkpoint) or (checkpoint / _COMMITTED).exists()


def is_folder(path: Path) -> bool:
    """Returns whether a folder exists; always true in a bucket: it has no folders."""
    return in_bucket(path) or path.is_dir()


def remove(folder: Path) -> None:
    """Removes a folder as far as possible."""
    if in_bucket(folder):
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path, target: Path) -> None:
    """Renames a folder; in a bucket, copies each of its objects and removes the old."""
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
