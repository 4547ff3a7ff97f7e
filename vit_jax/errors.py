"""The error types that commands print without a traceback."""


class UserError(ValueError):
    """An error that the user can fix.

    The message says what was found, what was expected and what to do next.
    """


class Problems(UserError):
    """Several errors that were found together; each is a line of the message, once."""

    def __init__(self, *problems: str):
        # As `args` they are copied to another process, and may be reworded.
        super().__init__(*dict.fromkeys(problems))

    def __str__(self) -> str:
        return "\n".join(self.args)


def problems_of(error: Exception) -> list[str]:
    """Returns the messages of what an error reports: several, or its own."""
    return list(error.args) if isinstance(error, Problems) else [str(error)]
