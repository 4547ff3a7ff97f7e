"""A hash that does not depend on the version of Python or numpy, or the platform."""

import hashlib


def stable_hash(text: str) -> int:
    """Returns a number in [0, 2^64) that depends on `text` alone."""
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
