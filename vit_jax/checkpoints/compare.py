"""Comparison of two parameter trees by names and shapes."""

from typing import Any

from vit_jax.trees import leaves_by_path
from vit_jax.words import shortened


def compare_trees(expected: Any, found: Any, *, dtypes: bool = False) -> str:
    """Lists the differences of two trees, which Orbax would ignore (orbax #2972).

    Names join the keys with "/". Containers are compared by their keys only, whether
    dictionary, sequence or named tuple, and empty nodes do not count. A tree that was
    read from a file, which does not record classes, thus equals the one that was saved.

    Args:
      expected: the wanted tree; its leaves have `shape` (and `dtype`).
      found: the tree to check, with leaves of the same kind.
      dtypes: whether dtypes must agree as well.

    Returns:
      "" if they agree; otherwise one line per kind of difference (missing, unexpected,
      different) with the count and at most ten names.
    """
    wanted, there = leaves_by_path(expected), leaves_by_path(found)
    different = [
        f"{name} (expected {_describe(leaf, dtypes)}, "
        f"found {_describe(there[name], dtypes)})"
        for name, leaf in wanted.items()
        if name in there and _describe(leaf, dtypes) != _describe(there[name], dtypes)
    ]
    kinds = {
        "missing": [name for name in wanted if name not in there],
        "unexpected": [name for name in there if name not in wanted],
        "different": different,
    }
    return "\n".join(
        f"{len(names)} {kind}: {shortened(names)}"
        for kind, names in kinds.items()
        if names
    )


def _describe(leaf: Any, dtypes: bool) -> str:
    shape = f"[{', '.join(map(str, leaf.shape))}]"
    return f"{leaf.dtype}{shape}" if dtypes else shape
