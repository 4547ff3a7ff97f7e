"""Files of results that grow line by line: JSON lines and CSV."""

import contextlib
import csv
import io
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol

from vit_jax.errors import UserError
from vit_jax.prediction.records import Layout, to_row

logger = logging.getLogger(__name__)

# What has been predicted is written at the latest after this time or number.
_SECONDS, _MOST_BYTES = 1.0, 1 << 20


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system into one that names the file of results."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. What it has is "
            "kept, and the same command continues from there"
        ) from error


class Found(NamedTuple):
    """A result that a file already has."""

    image: str
    error: str | None  # the reason, if it could not be read


class Format(Protocol):
    """A format in which each result is one record that ends with a line break."""

    @property
    def header(self) -> bytes:
        """The beginning of the file; b"" if there is none."""
        ...

    def encode(self, record: dict[str, Any]) -> bytes:
        """Writes the values of `records.to_json` as one record."""
        ...

    def decode(self, data: bytes) -> Found:
        """Reads a record; raises ValueError if it is none."""
        ...

    def is_whole(self, data: bytes) -> bool:
        """Returns whether these lines are a whole record."""
        ...


class JsonLines:
    """JSON lines: {"image": …, "top": [{"class": …, "probability": …}, …]}."""

    header = b""

    def encode(self, record: dict[str, Any]) -> bytes:
        # ASCII, because only escapes can express file names that are not UTF-8.
        return json.dumps(record, allow_nan=False).encode() + b"\n"

    def decode(self, data: bytes) -> Found:
        record = json.loads(data)
        if not isinstance(record, dict) or not isinstance(record.get("image"), str):
            raise ValueError('expected {"image": …}')
        return Found(record["image"], record.get("error"))

    def is_whole(self, data: bytes) -> bool:
        return data.endswith(b"\n")


class Csv:
    """CSV with a header, see `Layout.columns`."""

    def __init__(self, layout: Layout):
        """Sets the columns."""
        self._layout = layout
        self.header = _line(layout.columns)

    def encode(self, record: dict[str, Any]) -> bytes:
        return _line(to_row(record, self._layout))

    def decode(self, data: bytes) -> Found:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
        expected = len(self._layout.columns)
        if len(rows) != 1 or len(rows[0]) != expected:
            raise ValueError(f"expected {expected} columns")
        return Found(rows[0][0], rows[0][1] or None)

    def is_whole(self, data: bytes) -> bool:
        # A line break within quotes belongs to a name.
        return data.endswith(b"\n") and data.count(b'"') % 2 == 0


class Appended:
    """A file of results to which more are appended; a context manager.

    Attributes:
      path: the file.
    """

    def __init__(self, path: pathlib.Path, format: Format):
        """Sets the file, which need not exist."""
        self.path, self._format = path, format
        self._end = 0  # of the last whole record
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._written = time.monotonic()

    def found(self) -> Iterator[Found]:
        """Yields the results that are in the file; to be exhausted before `write`.

        Raises:
          UserError: the file has something else.
        """
        self._end = 0
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            header = self._format.header
            start = file.read(len(header))
            if len(start) == len(header) and start != header:
                raise UserError(
                    f"{self.path} begins with other columns than "
                    f"{header.decode().strip()}; pass another --out"
                )
            if len(start) < len(header):  # the program was killed early
                return
            self._end = len(header)
            data, number = b"", 1
            for line in file:
                data += line
                if self._format.is_whole(data):
                    yield self._decoded(data, number)
                    self._end += len(data)
                    data, number = b"", number + 1
        if data:
            logger.info(
                "%s: the last result was written only in part, and is computed again",
                self.path,
            )

    def write(self, record: dict[str, Any]) -> None:
        """Appends a result; it reaches the file within about a second."""
        self._waiting += self._format.encode(record)
        late = time.monotonic() > self._written + _SECONDS
        if late or len(self._waiting) > _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hands all results to the operating system."""
        with written(self.path):
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                self._file.truncate(self._end)
                if not self._end:
                    self._waiting[:0] = self._format.header
            while self._waiting:  # a write may be partial
                count = self._file.write(self._waiting)
                del self._waiting[:count]
        self._written = time.monotonic()

    def __enter__(self) -> "Appended":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.flush()
            assert self._file is not None
            with written(self.path):
                os.fsync(self._file.fileno())
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _decoded(self, data: bytes, number: int) -> Found:
        try:
            return self._format.decode(data)
        except ValueError as error:
            raise UserError(
                f"{self.path}: record {number} is not a result ({error}); repair or "
                "remove the file, or pass another --out"
            ) from error


def _line(cells: list[Any]) -> bytes:
    return (",".join(map(_cell, cells)) + "\n").encode("utf-8")


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    # Python's csv.writer leaves a carriage return without quotes, which cannot be read.
    if any(sign in text for sign in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
