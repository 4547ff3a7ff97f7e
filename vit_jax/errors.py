"""The one error type that commands print without a traceback."""


class UserError(ValueError):
    """An error that the user can fix.

    The message says what was found, what was expected and what to do next.
    """
