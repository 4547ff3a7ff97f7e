"""Hashes that do not depend on the version of Python or numpy, or the platform."""

import hashlib

import numpy as np


def stable_hash(text: str) -> int:
    """Returns a number in [0, 2^64) that depends on `text` alone."""
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def digest(*values: np.ndarray | str) -> str:
    """Returns 32 hexadecimal digits that depend on the values of arrays and texts."""
    hashed = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, str):
            data = value.encode("utf-8", "surrogateescape")
            hashed.update(b"text %d " % len(data) + data)
            continue
        array = np.ascontiguousarray(value)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        hashed.update(f"{array.dtype.str} {array.shape} ".encode())
        hashed.update(array.reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()
