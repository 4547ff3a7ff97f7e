"""A text file that a run appends to, on a disk or in a bucket."""

import errno
import os
from pathlib import Path

from vit_jax.checkpoints.buckets import in_bucket


def open_lines(file: Path) -> "LocalLines | BucketLines":
    """Opens a file, which may not exist, to append to it.

    Raises:
      OSError: it cannot be written.
    """
    return BucketLines(file) if in_bucket(file) else LocalLines(file)


class LocalLines:
    """On a disk, where each line is appended at once."""

    def __init__(self, file: Path):
        self._file = file
        self._stream = open(file, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> None:
        self._stream.write(text)

    def flush(self) -> None:
        """What was written is safe from the end of this process."""
        self._stream.flush()

    def sync(self) -> None:
        """What was written is safe from the end of this machine.

        Raises:
          OSError: the disk is full or the like, or somebody took the file away, so that
            nobody would ever read what was written to it.
        """
        self._stream.flush()
        os.fsync(self._stream.fileno())
        # Writing to a file that was deleted meanwhile fails nowhere.
        if not os.path.samestat(os.fstat(self._stream.fileno()), self._file.stat()):
            raise FileNotFoundError(
                errno.ENOENT, "it was replaced while the run wrote it", self._file
            )

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed


class BucketLines:
    """In a bucket, where objects can only be written whole: when `sync` is called."""

    def __init__(self, file: Path):
        self._file, self.closed = file, False
        self._text = file.read_text() if file.exists() else ""

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        """Nothing: see the class."""

    def sync(self) -> None:
        """See `LocalLines`."""
        self._file.write_text(self._text)

    def close(self) -> None:
        self.closed = True
