"""Checked access to the JSON files beside foreign weights (companion files)."""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.words import pair


class Kind(NamedTuple):
    """The kind of value that is expected: a test, and its description for messages."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    # Finite, and not an integer too large for a float.
    return type(value) in (int, float) and abs(value) < 1e9


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


FLAG = Kind(lambda value: type(value) is bool, "true or false")
TEXT = Kind(_is_text, "a text")
LABELS = Kind(
    lambda value: _is_list_of(_is_text)(
        list(value.values()) if isinstance(value, Mapping) else value
    ),
    "a list of texts, or an object with a text for each number",
)
COUNT = Kind(_is_size, "a whole number above 0")
COUNT_OR_NONE = Kind(
    lambda value: _is_size(value) or (type(value) is int and value == 0),
    "a whole number, 0 or more",
)
FRACTION = Kind(
    lambda value: _is_number(value) and 0 < value <= 1, "above 0, 1 at most"
)
EPSILON = Kind(lambda value: _is_number(value) and 0 < value < 1, "between 0 and 1")
FACTOR = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
NUMBERS = Kind(
    lambda value: _is_list_of(_is_number)(value) and len(value) > 0,
    "a list of numbers, one at least",
)
TABLE = Kind(lambda value: isinstance(value, Mapping), "an object")
PAIR = Kind(
    lambda value: _is_size(value) or (_is_list_of(_is_size)(value) and len(value) == 2),
    "a number of pixels or [height, width]",
)
INPUT = Kind(
    lambda value: _is_list_of(_is_size)(value) and len(value) == 3,
    "[channels, height, width]",
)


def without_nulls(table: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the entries that are null, which means absent, from nested objects.

    Items of a list stay, because they are counted.
    """
    return {
        name: without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def entry(table: Mapping[str, Any], name: str, kind: Kind, default: Any = None) -> Any:
    """Returns the value of `name`, or `default` if it is absent or null.

    Raises:
      UserError: the value is not of this kind.
    """
    value = table.get(name)
    if value is None:
        return default
    if not kind.holds(value):
        raise UserError(
            f"in the companion file, {name} is {reprlib.repr(value)}, expected "
            f"{kind.words}: correct it, or remove the file"
        )
    return value


def check_agreement(told: Iterable[tuple[str, Any, Any]]) -> None:
    """Compares a companion file with the shapes of the weights beside it.

    Args:
      told: (name in the file, value in the file or None, value from the shapes).

    Raises:
      UserError: some values differ; lists each with both values.
    """
    differences = [
        f"{name} is {reprlib.repr(value)} there but {found!r} in the weights"
        for name, value, found in told
        if value not in (None, found)
    ]
    if differences:
        raise UserError(
            "the companion config.json does not match the weights: "
            f"{'; '.join(differences)}. Correct it, or remove it to use the weights "
            "alone"
        )


def size_entry(
    table: Mapping[str, Any], name: str, default: Any = None
) -> tuple[int, int] | None:
    """Reads a PAIR as (height, width), or the default if it is absent or null.

    Raises:
      UserError: the value is not of this kind.
    """
    value = entry(table, name, PAIR, default)
    return None if value is None else pair(value)


def one_a_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns one value per channel: the average for all if the numbers differ."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / max(len(values), 1),) * channels
