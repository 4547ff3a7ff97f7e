"""Paths of parameters, and patterns that match them."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from vit_jax.trees import leaves_by_path
from vit_jax.words import did_you_mean


def paths_of(params: Any) -> list[str]:
    """Lists the paths of all parameters, in the order of the tree."""
    return [*leaves_by_path(params)]


def split_patterns(text: str) -> list[str]:
    """Splits patterns at commas, except inside brackets, as in "blocks_0{1,2}/.*"."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return [pattern for pattern in map(str.strip, found) if pattern]


def matching(pattern: re.Pattern[str] | str, paths: Iterable[str]) -> list[str]:
    """Lists the paths that a pattern matches as a whole."""
    return [path for path in paths if re.fullmatch(pattern, path)]


def like_none(pattern: str, paths: Collection[str], names: Collection[str] = ()) -> str:
    """Explains that a pattern matches no path, with the nearest that does.

    Args:
      pattern: the pattern that was written.
      paths: all paths.
      names: names that may stand in place of a pattern.
    """
    subtrees = {
        f"{path[: end.start()]}/.*" for path in paths for end in re.finditer("/", path)
    }
    hint = did_you_mean(pattern, [*names, *sorted(subtrees), *paths])
    example = next(iter(paths))
    return (
        f"{pattern!r} matches no parameter{hint}; it must match a whole path, and "
        f"parameter paths look like {example!r}"
    )
