"""Readers of single cells of a table: paths, zeros and ones, lists written as text."""

import ast
from collections.abc import Collection
from typing import Any

_ZERO_OR_ONE = {
    "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True,
}  # fmt: skip
_MOST_VALUES = 100  # distinct ones of a column that are looked at


def zero_or_one(value: Any) -> bool | None:
    """Reads a cell of a column for one class; None if it is something else."""
    if value == "0" or value == "1":  # nearly all of them
        return value == "1"
    return _ZERO_OR_ONE.get(str(value).strip().lower())


def is_empty(value: Any) -> bool:
    """Returns whether a cell has no value: missing, blank, or "not a number"."""
    return value is None or value != value or not str(value).strip()


def listed(value: str) -> list[Any] | None:
    """Reads a list that was written as text, such as "['cat', 'dog']"; else None."""
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, list) else None


class Seen:
    """A summary of the values of a column.

    Attributes:
      values: its distinct texts without blanks around them, as far as they are few.
      more: whether there are more.
      several: whether a cell holds several labels.
      lists: whether a cell is a list, not text.
      example: the first text that holds several labels.
    """

    def __init__(self, separator: str):
        self.values: set[str] = set()
        self.more = self.several = self.lists = False
        self.example = ""
        self._separator = separator

    def add(self, value: Any) -> None:
        if isinstance(value, str) and value in self.values:
            return
        if isinstance(value, list):
            self.several = self.lists = True
            return
        text = "" if is_empty(value) else str(value).strip()
        if not self.more:
            self.values.add(text)
            self.more = len(self.values) > _MOST_VALUES
        if not self.several and (self._separator in text or listed(text) is not None):
            self.several, self.example = True, text

    def is_binary(self, also: Collection[str] = ()) -> bool:
        """Returns whether all values are zeros and ones, or in `also`, or empty."""
        values = self.values - {""}
        return bool(values) and all(
            zero_or_one(value) is not None or value in also for value in values
        )


def clean_path(path: str) -> str:
    """Writes a path with "/", and without blanks around it or needless parts."""
    path = path.strip().replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if "://" not in path:
        while "//" in path[1:] or "/./" in path:
            path = path[:1] + path[1:].replace("//", "/").replace("/./", "/")
    return path
