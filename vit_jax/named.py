"""Lookup of classes by a name in a table, or by the user's `package.module:Name`."""

import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.errors import Problems, UserError
from vit_jax.words import did_you_mean

T = TypeVar("T")

# Type of an option → its values in words.
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def find_class(
    name: str, table: Mapping[str, type[T]], base: type[T], key: str
) -> type[T]:
    """Finds the class that a config or a command line names.

    Look up only names that the user has typed, never names from a checkpoint: importing
    a module runs it.

    Args:
      name: a name in the table, or package.module:Name.
      table: classes by name.
      base: the class that it has to inherit from.
      key: name of the setting in error messages.

    Raises:
      UserError: there is no such name, module or class, or the module fails to import.
    """
    if name in table:
        return table[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise UserError(
            f"{key}={name!r}: choose from {', '.join(table)}, or name your own class "
            f"as package.module:Name{did_you_mean(name, table)}"
        )
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"{key}={name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:Name with a module on Python's path"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(
            f"{key}={name!r} is {found!r:.100}; expected a class that inherits from "
            f"{base.__module__}.{base.__name__}"
        )
    return found


def check_options(kind: Any, options: Mapping[str, Any], skip: int, key: str) -> None:
    """Rejects options that a class does not take, and values of a wrong type.

    The types are those of the annotations `bool`, `int`, `float` and `str`, alone or
    joined by "|". What else a value has to be, the class checks itself.

    Args:
      kind: the class.
      options: arguments by name.
      skip: number of its leading parameters that are not options.
      key: name of the options in error messages.

    Raises:
      UserError: names the options that it does not take, and those that it does; or
        lists the values of a wrong type.
    """
    taken = dict([*inspect.signature(kind).parameters.items()][skip:])
    if unknown := sorted(options.keys() - taken.keys()):
        raise UserError(
            f"{key}: {kind.__name__} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(taken) or 'no options'}"
        )
    wrong = [
        f"{key}.{name}={value!r:.200}: expected {expected}"
        for name, value in options.items()
        if (expected := _expected_instead(value, taken[name].annotation))
    ]
    if wrong:
        raise Problems(*wrong)


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, which True and False are not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _expected_instead(value: Any, annotation: Any) -> str:
    """Says which values an annotation allows if this is none of them; "" = it is."""
    union = isinstance(annotation, types.UnionType)
    allowed = set(typing.get_args(annotation) if union else [annotation])
    if not allowed <= _EXPECTED.keys() | {types.NoneType}:
        return ""  # of another type, which the class has to check
    accepts = {bool: isinstance(value, bool), str: isinstance(value, str)}
    accepts[int] = isinstance(value, int) and not isinstance(value, bool)
    accepts[float] = is_number(value)
    accepts[types.NoneType] = value is None
    if any(accepts[one] for one in allowed):
        return ""
    named = [words for one, words in _EXPECTED.items() if one in allowed]
    return " or ".join(named)
