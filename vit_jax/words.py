"""Says numbers, sizes and names as people read them."""

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like `name`; all of them if none is alike and they are few."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=count, cutoff=0.5)
    return close or (choices if len(choices) <= 10 else [])
