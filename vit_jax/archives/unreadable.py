"""The exception that all readers of files of unknown origin raise."""


class Unreadable(Exception):
    """A file that cannot be read, with the reason and a remedy to show the user.

    The remedy is empty if only another copy of the file would help.
    """

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
