"""The error types that commands print without a traceback."""

from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user can fix.

    The message says what was found, what was expected and what to do next.
    """


class Problems(UserError):
    """Several errors that were found together; each is a line of the message.

    Attributes:
      problems: their messages, each once.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = [*dict.fromkeys(problems)]
        super().__init__("\n".join(self.problems))


def problems_of(error: Exception) -> list[str]:
    """Returns the messages of what an error reports: several, or its own."""
    return error.problems if isinstance(error, Problems) else [str(error)]
