"""Text for people: numbers, sizes, lists and names, written and read."""

import difflib
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_LONGEST_NAME = 100
_LONGEST_REASON = 200


def byte_size(count: float) -> str:
    """Writes a number of bytes: `byte_size(1.5 * 2**30) == "1.50 GiB"`.

    Less than half a GiB is written in MiB.
    """
    if count >= 2**29:
        return f"{count / 2**30:,.2f} GiB"
    return f"{count / 2**20:,.1f} MiB"


def si(count: float) -> str:
    """Writes a large number with its prefix: `si(17.58e9) == "17.6 G"`."""
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {prefix}"
    return f"{count / 1e6:,.1f} M"


def milliseconds(seconds: float | None) -> str:
    """Writes seconds as milliseconds: `milliseconds(0.0125) == "12.5"`.

    Less than ten have three decimals; None, an unknown time, is "-".
    """
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:,.{1 if seconds >= 0.01 else 3}f}"


def times(sides: Iterable[int]) -> str:
    """Writes the sides of a rectangle: `times((16, 8)) == "16×8"`."""
    return "×".join(map(str, sides))


def pair(size: Any) -> tuple[int, int]:
    """Reads (height, width) from one side or both: `pair(16) == (16, 16)`.

    Raises:
      TypeError: a side is not a whole number (NumPy integers are).
      ValueError: there are neither one nor two sides.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size,)
    height, width = map(operator.index, sides * 2 if len(sides) == 1 else sides)
    return height, width


def shortened(
    names: Sequence[Any],
    show: Callable[[Any], str] = str,
    most: int = 10,
    separator: str = ", ",
) -> str:
    """Lists a few names and counts the rest.

    For example, `shortened(["a", "b", "c"], most=2) == "a, b, … and 1 more"`.

    Args:
      names: all names.
      show: function that writes a name, such as `repr`.
      most: number of names to list.
      separator: text between two names; a line break puts each on a line of its own.
    """
    listed = [show(name) for name in names[:most]]
    if len(names) > most:
        listed.append(f"… and {len(names) - most:,} more")
    return separator.join(listed)


def either(names: Sequence[str]) -> str:
    """Quotes alternatives: `either(["a", "b", "c"]) == "'a', 'b' or 'c'"`."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def nearest(
    name: str, choices: Iterable[str], count: int = 3, cutoff: float = 0.6
) -> list[str]:
    """Finds the choices with the most similar spelling, the most similar first.

    For example, `nearest("sead", ["seed", "step"]) == ["seed"]`. Case is ignored.

    Args:
      name: the name that was written.
      choices: names that could have been meant.
      count: maximum number of results.
      cutoff: minimum similarity, from 0 (nothing in common) to 1 (the same).
    """
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(name.lower())
    likeness = {}
    for choice in choices:
        matcher.set_seq1(choice.lower())
        if matcher.quick_ratio() >= cutoff and (ratio := matcher.ratio()) >= cutoff:
            likeness[choice] = ratio
    return sorted(likeness, key=likeness.__getitem__, reverse=True)[:count]


def did_you_mean(
    name: Any, choices: Iterable[str], count: int = 1, cutoff: float = 0.6
) -> str:
    """Suggests similar names as the end of a message; "" if there are none.

    For example, `did_you_mean("sead", ["seed", "step"]) == "; did you mean 'seed'?"`.

    Args:
      name: the name that was written.
      choices: names that could have been meant.
      count: maximum number of suggestions.
      cutoff: minimum similarity, as in `nearest`.
    """
    found = nearest(str(name), choices, count, cutoff)
    return f"; did you mean {either(found)}?" if found else ""


def quoted(name: str) -> str:
    """Quotes a name from a file for one line of a message."""
    return repr(name[:_LONGEST_NAME]) + ("…" if len(name) > _LONGEST_NAME else "")


def plain(name: str) -> str:
    """Writes a name for one line of a message, with quotes only if it needs them."""
    harmless = name.isprintable() and not set(name) & set(" ,'\"")
    return name if harmless and 0 < len(name) <= _LONGEST_NAME else quoted(name)


def one_line(text: str) -> str:
    """Shortens another library's message to one line."""
    words = " ".join(text.split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def first_and_last(names: Sequence[str], most: int = 4) -> str:
    """Lists the first and the last few of many names, as `plain` writes them.

    For example, `first_and_last("abcdefg", most=2) == "a, b, …, f, g"`.
    """
    if len(names) <= 2 * most + 1:
        return ", ".join(map(plain, names))
    first, last = names[:most], names[-most:]
    return f"{', '.join(map(plain, first))}, …, {', '.join(map(plain, last))}"
