"""Writes .npz files."""

import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np


def write_npz(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `numpy.savez` does, never pickled.

    Older versions of NumPy take `allow_pickle` for one more array, and leave the
    archive open when the disk is full.

    Raises:
      OSError: they cannot be written.
      ValueError: an array of objects.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
