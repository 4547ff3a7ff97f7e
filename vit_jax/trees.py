"""Paths in trees of parameters, and parts of such trees."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Writes the path of a leaf, as in "blocks_00/mlp/fc1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, in the order of the tree."""
    return {path_name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def chosen(
    tree: Mapping[str, Any], wanted: Callable[[str], bool], prefix: str = ""
) -> dict[str, Any]:
    """Returns a nested dict with the leaves whose "/"-joined path is wanted.

    Subtrees without any are left out.
    """
    found = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if below := chosen(value, wanted, f"{path}/"):
                found[name] = below
        elif wanted(path):
            found[name] = value
    return found


def overlaid(some: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict `whole` with the leaves of `some` in place of its own.

    Leaves that `whole` lacks are added.
    """
    result = dict(whole)
    for name, value in some.items():
        nested = isinstance(value, Mapping) and isinstance(whole.get(name), Mapping)
        result[name] = overlaid(value, whole[name]) if nested else value
    return result
