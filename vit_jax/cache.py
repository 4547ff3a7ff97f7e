"""A cache folder for data that can be fetched or computed again.

It is $VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from vit_jax.archives.npz import read_npz, write_npz
from vit_jax.files import atomic_write


def cache_dir() -> pathlib.Path:
    """Returns the cache folder, which need not exist."""
    if folder := os.environ.get("VIT_JAX_CACHE"):
        return pathlib.Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "vit_jax"


def load_arrays(name: str) -> dict[str, np.ndarray] | None:
    """Loads arrays that `store_arrays` has kept; None if missing or damaged."""
    try:
        with open(cache_dir() / name, "rb") as file:
            return read_npz(file)  # compares checksums
    except Exception:  # whatever the damage, the arrays can be computed again
        return None


def store_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays under a name such as "labels/3f.npz", completely or not at all.

    A cache that cannot be written is not an error.
    """
    path = cache_dir() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: a damaged file is detected and its arrays are computed again.
        with (
            atomic_write(path, sync=False) as temporary,
            temporary.open("wb") as file,
        ):
            write_npz(file, arrays)
