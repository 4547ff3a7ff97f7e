"""Finds a class by a name in a table, or by `package.module:Name` of the user's own."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.errors import UserError
from vit_jax.words import nearest

T = TypeVar("T")


def find_class(
    name: str, table: Mapping[str, type[T]], base: type[T], key: str
) -> type[T]:
    """The class that a config or a command line names.

    Only what the user has typed may be looked up here, never what a checkpoint says:
    importing a module runs it.

    Args:
      name: a name in the table, or package.module:Name.
      table: classes by name.
      base: what the class has to inherit from.
      key: what the message calls the setting.

    Raises:
      UserError: no such name, module or class, or the module fails to import.
    """
    if name in table:
        return table[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise UserError(
            f"{key}={name!r}: choose from {', '.join(nearest(name, table))}, or name a "
            "class of your own as package.module:Name"
        )
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # it is the user's module: whatever it raises
        raise UserError(
            f"{key}={name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:Name of a module on Python's path"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(
            f"{key}={name!r} is {found!r:.100}; expected a class that inherits from "
            f"{base.__module__}.{base.__name__}"
        )
    return found


def check_options(kind: Any, options: Mapping[str, Any], skip: int, key: str) -> None:
    """Refuses options that a class does not take.

    Args:
      kind: the class.
      options: arguments by name.
      skip: how many of its first parameters are not options.
      key: what the message calls the options.

    Raises:
      UserError: names those that it does not take, and those that it does.
    """
    taken = [*inspect.signature(kind).parameters][skip:]
    if unknown := sorted(options.keys() - set(taken)):
        raise UserError(
            f"{key}: {kind.__name__} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(taken) or 'no options'}"
        )
