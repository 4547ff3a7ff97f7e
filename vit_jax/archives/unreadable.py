"""The error of every reader of files of unknown origin."""


class Unreadable(Exception):
    """A file cannot be read: `reason` and `remedy` are parts of the user's message.

    The remedy is empty where nothing helps but another copy.
    """

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
