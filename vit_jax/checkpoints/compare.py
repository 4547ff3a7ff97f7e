"""Whether two parameter trees have the same names and shapes, and where they differ."""

from typing import Any

import jax

from vit_jax.words import shortened


def compare_trees(expected: Any, found: Any, *, dtypes: bool = False) -> str:
    """Names what differs between two trees; Orbax alone loads silently (orbax #2972).

    Names join the keys by "/". Dictionaries, sequences and named tuples are told apart
    by their keys only, and empty nodes do not count: so a tree read from a file, which
    has forgotten its classes, equals the one that was saved.

    Args:
      expected: the tree that is wanted; leaves have `shape` (and `dtype`).
      found: the tree that is there; the same.
      dtypes: whether dtypes must agree as well.

    Returns:
      "" when they agree; else a line for each kind of difference (missing, unexpected,
      different) with the count and at most ten names.
    """
    wanted, there = _leaves(expected), _leaves(found)
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


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _describe(leaf: Any, dtypes: bool) -> str:
    shape = f"[{', '.join(map(str, leaf.shape))}]"
    return f"{leaf.dtype}{shape}" if dtypes else shape
