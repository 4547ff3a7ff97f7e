"""Says numbers, sizes and names as people read them."""

import difflib
from collections.abc import Callable, Iterable, Sequence

_MOST_LISTED = 10
_LONGEST_NAME = 100
_LONGEST_REASON = 200


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like `name`; all of them if none is alike and they are few."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=count, cutoff=0.5)
    return close or (choices if len(choices) <= 10 else [])


def quoted(name: str) -> str:
    """Makes a name out of a file fit for one line of a message."""
    return repr(name[:_LONGEST_NAME]) + ("…" if len(name) > _LONGEST_NAME else "")


def plain(name: str) -> str:
    """Makes a name fit for one line of a message, with quotes only if it needs them."""
    harmless = name.isprintable() and not set(name) & set(" ,'\"")
    return name if harmless and 0 < len(name) <= _LONGEST_NAME else quoted(name)


def one_line(text: str) -> str:
    """Makes another library's words fit for one line of a message."""
    words = " ".join(text.split())[:_LONGEST_REASON]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def shortened(names: Sequence[str], show: Callable[[str], str] = quoted) -> str:
    """Lists names for a message: at most ten, and the count of the rest."""
    more = len(names) - _MOST_LISTED
    listed = ", ".join(show(name) for name in names[:_MOST_LISTED])
    return listed + (f", … and {more} more" if more > 0 else "")
