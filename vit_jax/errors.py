"""The one error type that commands print without a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message says what was found, what was
    expected and what to do next.
    """
