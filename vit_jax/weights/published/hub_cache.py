"""Models that other programs have downloaded into Hugging Face's own cache.

The cache has a folder for each repository:

    models--OWNER--NAME/
      refs/main              the commit of a branch
      snapshots/COMMIT/…     the repository's files: links to blobs
      blobs/CHECKSUM
"""

import os
import pathlib
import re
import urllib.parse

from vit_jax.errors import UserError
from vit_jax.weights.files.directories import COMPANIONS, dangling
from vit_jax.weights.published.zoo import HUB
from vit_jax.words import plain, shortened

_ADDRESS = re.compile(
    rf"{re.escape(HUB)}/(?P<owner>[^/]+)/(?P<name>[^/]+)/resolve/"
    r"(?P<revision>[^/]+)/(?P<file>[^?#]+)"
)
_REPOSITORY = "models--"


def hub_cache() -> pathlib.Path:
    """Returns the folder of Hugging Face's cache, which need not exist."""
    for name, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if folder := os.environ.get(name):
            return pathlib.Path(folder).expanduser() / below
    return pathlib.Path("~/.cache/huggingface/hub").expanduser()


def find_in_hub_cache(url: str) -> pathlib.Path | None:
    """Finds the file of an address on the hub; None if it is not in the cache.

    Nor is it if a companion's blob is missing: then facts about the model would be.
    """
    match = _ADDRESS.fullmatch(url)
    if not match:
        return None
    folder = hub_cache() / f"{_REPOSITORY}{match['owner']}--{match['name']}"
    snapshot = _snapshot(folder, urllib.parse.unquote(match["revision"]))
    file = snapshot and snapshot / urllib.parse.unquote(match["file"])
    if not file or not file.is_file() or dangling(file.parent, COMPANIONS):
        return None
    return file


def in_snapshot(path: pathlib.Path) -> pathlib.Path:
    """Replaces a repository's folder, or one of its blobs, by the place in a snapshot.

    Only there do the files have their names and lie beside each other. Any other path
    is returned unchanged.

    Raises:
      UserError: it is open which snapshot of the repository is meant.
    """
    path = path.absolute()
    if path.name == "snapshots" and path.parent.name.startswith(_REPOSITORY):
        path = path.parent
    if path.name.startswith(_REPOSITORY) and path.is_dir():
        return _snapshot(path, "main") or _only_snapshot(path)
    folder = path.parent.parent
    if path.parent.name == "blobs" and folder.name.startswith(_REPOSITORY):
        links = sorted(folder.glob("snapshots/*/*"))
        return next((link for link in links if link.resolve() == path.resolve()), path)
    return path


def _only_snapshot(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the only snapshot, or the repository's if it has none."""
    snapshots = sorted(folder.glob("snapshots/*/"))
    if len(snapshots) > 1:
        names = shortened([snapshot.name for snapshot in snapshots], plain)
        raise UserError(
            f"{folder} in Hugging Face's cache holds {len(snapshots)} snapshots "
            f"({names}), and refs/main names none of them: pass the path of one, such "
            f"as {snapshots[0]}"
        )
    return snapshots[0] if snapshots else folder


def _snapshot(folder: pathlib.Path, revision: str) -> pathlib.Path | None:
    """Returns the folder of a revision's files; None if it is not there."""
    reference = folder / "refs" / revision
    try:
        commit = reference.read_text().strip() if reference.is_file() else revision
    except (OSError, UnicodeDecodeError):
        return None
    found = folder / "snapshots" / commit
    if found.is_dir() and found.parent.name == "snapshots":
        return found
    if revision != "main" or reference.is_file():
        return None
    # A folder that was copied without its references.
    snapshots = list(folder.glob("snapshots/*/"))
    return snapshots[0] if len(snapshots) == 1 else None
