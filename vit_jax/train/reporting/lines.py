"""A text file that a run appends to, on a disk or in a bucket."""

import errno
import os
from pathlib import Path

from vit_jax.checkpoints.buckets import in_bucket


def open_lines(file: Path) -> "LocalLines | BucketLines":
    """Opens a file, which need not exist, for appending.

    Raises:
      OSError: it cannot be written.
    """
    return BucketLines(file) if in_bucket(file) else LocalLines(file)


class LocalLines:
    """A text file on a disk, where each line is appended at once."""

    def __init__(self, file: Path):
        self._file = file
        self._stream = open(file, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> None:
        self._stream.write(text)

    def flush(self) -> None:
        """Makes the text written so far survive the end of this process."""
        self._stream.flush()

    def sync(self) -> None:
        """Makes the text written so far survive the end of this machine.

        Raises:
          OSError: the disk is full or the like, or the file was removed or replaced, so
            that the text would never be read.
        """
        self._stream.flush()
        os.fsync(self._stream.fileno())
        # Writing to a file that was deleted in the meantime does not fail.
        if not os.path.samestat(os.fstat(self._stream.fileno()), self._file.stat()):
            raise FileNotFoundError(
                errno.ENOENT, "it was replaced while the run wrote to it", self._file
            )

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed


class BucketLines:
    """A text file in a bucket, where `sync` writes the whole object."""

    def __init__(self, file: Path):
        self._file, self.closed = file, False
        self._text = file.read_text() if file.exists() else ""

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        """Does nothing, since only whole objects can be written."""

    def sync(self) -> None:
        """Writes the whole object."""
        self._file.write_text(self._text)

    def close(self) -> None:
        self.closed = True
