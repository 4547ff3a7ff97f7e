"""Where this package keeps what it can fetch or work out again.

$VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from vit_jax.archives.npz import read_npz, write_npz
from vit_jax.files import atomic_write


def cache_dir() -> pathlib.Path:
    """The folder; it need not exist."""
    if folder := os.environ.get("VIT_JAX_CACHE"):
        return pathlib.Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "vit_jax"


def load_arrays(name: str) -> dict[str, np.ndarray] | None:
    """Loads what `store_arrays` has kept; None if that is missing or damaged."""
    try:
        with open(cache_dir() / name, "rb") as file:
            return read_npz(file)  # which compares checksums
    except Exception:  # whatever the damage, it can all be worked out again
        return None


def store_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays under a name such as "labels/3f.npz", completely or not at all.

    A cache that cannot be written is no error.
    """
    path = cache_dir() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: damage is noticed, and then it is worked out again.
        with (
            atomic_write(path, sync=False) as temporary,
            temporary.open("wb") as file,
        ):
            write_npz(file, arrays)
