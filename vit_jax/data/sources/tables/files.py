"""Tables as files: their columns and rows, whatever the format.

Text tables may be UTF-8 or, with a byte order mark, UTF-16. The header decides the
delimiter, whatever the file's ending.
"""

import codecs
import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any

from vit_jax.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
# Endings of files that are taken for tables without being told so.
EXTENSIONS = (".csv", ".tsv", *JSON_LINES, PARQUET)
# Others that people take for tables: text is read, the rest refused as what it is.
OTHER_EXTENSIONS = (
    *(".txt", ".json", ".xlsx", ".xls", ".csv.gz", ".feather", ".arrow", ".sqlite"),
)

Row = dict[str, Any]
Known = Callable[[str], bool]  # whether a column has a name that means something

_DELIMITERS = (",", ";", "\t", "|")
_DECLARED = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's first line
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a file compressed by gzip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3\0": "an SQLite database",
    b"ARROW1": "an Arrow or Feather file",
}
_LFS = b"version https://git-lfs.github.com/spec/"


class Table:
    """A table on the disk, whose rows can be read repeatedly.

    Attributes:
      file: its path.
      columns: names of its columns, without the blanks around them.
      unit: what the numbers of `rows` count: "line" or "row".
      divided: what divides its columns, for messages.
      images: columns that hold images rather than paths.
      class_names: column → names of the classes that its whole numbers stand for.
      single: columns that can hold only one label per row.
      lists: columns of lists.
    """

    unit = "line"
    divided = "columns are those of the file's schema"
    images: tuple[str, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = {}
    single: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()

    def __init__(self, file: str, columns: list[str]):
        self.file, self.columns = file, columns

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return os.path.basename(self.file)

    def rows(self, columns: Collection[str]) -> Iterator[tuple[int, Row | str]]:
        """Yields each row as (number, values or the reason why it has none).

        Args:
          columns: those whose values are wanted; there may be others.

        Raises:
          UserError: the file cannot be read.
        """
        raise NotImplementedError


def check_not_pointer(file: str) -> None:
    """Raises UserError if a file only stands for one that Git LFS has not fetched."""
    with open(file, "rb") as binary:
        if binary.read(len(_LFS)) == _LFS:
            raise UserError(
                f"{file} is a pointer of Git LFS, not the file itself. Fetch it: "
                "git lfs pull"
            )


def normal(name: str) -> str:
    """Returns a column's name for comparison: `normal(" File Name") == "file_name"`."""
    return re.sub(r"[\s_.-]+", "_", name.strip().lower())


def open_table(file: str, known: Known) -> Table:
    """Opens a table and reads the names of its columns.

    Args:
      file: its path; without an ending of another format it is delimited text.
      known: whether a name of a column is one that people give to columns of images,
        labels and so on; decides between delimiters.

    Raises:
      UserError: the file cannot be read.
    """
    ending = os.path.splitext(file)[1].lower()
    if ending == PARQUET:
        from vit_jax.data.sources.tables.parquet import ParquetTable

        return ParquetTable(file)
    return JsonTable(file) if ending in JSON_LINES else DelimitedTable(file, known)


class DelimitedTable(Table):
    """A text table with a header, such as .csv."""

    divided = "expected commas, semicolons, tabs or | between columns"

    def __init__(self, file: str, known: Known):
        self._skipped, self._delimiter = 0, ""
        _refuse_json(file)
        with _readable(file) as (text, _):
            for line in text:
                if declared := _DECLARED.fullmatch(line):
                    self._delimiter = declared[1]
                elif line.strip():
                    break
                self._skipped += 1
        headers = {
            delimiter: self._header(file, delimiter) for delimiter in _DELIMITERS
        }
        if not self._delimiter:
            self._delimiter = _likeliest(headers, file, known)
        columns = headers.get(self._delimiter) or self._header(file, self._delimiter)
        super().__init__(file, columns)

    def _header(self, file: str, delimiter: str) -> list[str]:
        with _readable(file) as (text, _):
            reader = _reader(self._after_skipped(text), delimiter)
            columns = [name.strip() for name in next(reader, [])]
        while columns and not columns[-1]:  # lines that end with the delimiter
            columns.pop()
        return columns

    def _after_skipped(self, text: IO[str]) -> Iterator[str]:
        for number, line in enumerate(text):
            if number >= self._skipped:
                yield line

    def rows(self, columns: Collection[str]) -> Iterator[tuple[int, Row | str]]:
        del columns  # all of a line is read anyway
        names, ended = self.columns, False
        record: list[str] = []  # lines of the row in work

        def lines(text: IO[str]) -> Iterator[str]:
            nonlocal ended
            for line in self._after_skipped(text):
                record.append(line)
                yield line
            ended = True

        with _readable(self.file) as (text, at):
            reader = _reader(lines(text), self._delimiter)
            next(reader, None)
            record.clear()
            number = self._skipped + reader.line_num
            for values in reader:
                begun, number = number + 1, self._skipped + reader.line_num
                at[0] = number
                if ended:  # the reader looked for the end of a quoted cell
                    raise csv.Error(f"the quote in line {begun} is never closed")
                if len(record) > 1:
                    self._check_quotes(record, begun)
                record.clear()
                if not any(value.strip() for value in values):
                    continue
                while len(values) > len(names) and not values[-1].strip():
                    values.pop()
                if len(values) == len(names):
                    yield number, dict(zip(names, values, strict=True))
                else:
                    yield number, f"{len(values)} cells, but {len(names)} columns"

    def _check_quotes(self, record: list[str], begun: int) -> None:
        """Raises csv.Error if a row of several lines seems to be several rows."""
        strict = csv.reader(
            record, delimiter=self._delimiter, skipinitialspace=True, strict=True
        )
        try:
            next(strict)
        except csv.Error:
            raise csv.Error(
                f"the quote in line {begun} is not closed in that line, and what "
                "closes it is followed by more text"
            ) from None


class JsonTable(Table):
    """A table of JSON objects, one per line; the first one's keys are the columns."""

    divided = "columns are the keys of the first row"

    def __init__(self, file: str):
        columns = []
        with _readable(file) as (text, _):
            for line in text:
                row = _json_row(line) if line.strip() else ""
                if isinstance(row, dict):
                    columns = [name.strip() for name in row]
                    break
            else:
                _refuse_json(file)
        super().__init__(file, columns)
        self._by_normal = {normal(name): name for name in columns}

    def rows(self, columns: Collection[str]) -> Iterator[tuple[int, Row | str]]:
        del columns
        known = set(self.columns)
        with _readable(self.file) as (text, at):
            for number, line in enumerate(text, 1):
                at[0] = number
                if not line.strip():
                    continue
                row = _json_row(line)
                if isinstance(row, dict) and not row.keys() <= known:
                    row = self._renamed(row)
                yield number, row

    def _renamed(self, row: Row) -> Row | str:
        """Gives keys the spelling of the first row."""
        row = {self._by_normal.get(normal(key), key): row[key] for key in row}
        known = self._by_normal.keys()
        if late := {"weight", "split"} & set(map(normal, row)) - known:
            return f"{', '.join(sorted(late))}, which the first row does not have"
        return row


def _likeliest(headers: dict[str, list[str]], file: str, known: Known) -> str:
    """Chooses the delimiter that gives the most known columns, then the most columns.

    The file's ending decides between equals.
    """
    default = "\t" if file.lower().endswith(".tsv") else ","

    def rank(delimiter: str) -> tuple[int, int, bool]:
        names = headers[delimiter]
        return sum(map(known, names)), len(names), delimiter == default

    return max(headers, key=rank)


def _reader(lines: Iterator[str], delimiter: str):
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _refuse_json(file: str) -> None:
    """Raises UserError if a text file is one JSON document."""
    with _readable(file) as (text, _):
        start = text.read(1024).lstrip()
    if start.startswith(("[", "{")):
        raise UserError(
            f"{file} is one JSON document, not a table. Write one object per line into "
            'a .jsonl file, such as {"image": "images/0.jpg", "label": "cat"}; pandas '
            "does: to_json(…, orient='records', lines=True)."
        )


def _json_row(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not a JSON object ({error})"
    return row if isinstance(row, dict) else "not a JSON object"


@contextlib.contextmanager
def _readable(file: str) -> Iterator[tuple[IO[str], list[int]]]:
    """Opens a text file; yields it and a list whose one item is the line in work.

    Raises:
      UserError: the file cannot be read as text.
    """
    at = [1]
    try:
        with open(file, encoding=_encoding(file), newline="") as text:
            yield text, at
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise UserError(
            f"{file} is not UTF-8 text ({reason} after line {at[0]}). Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise UserError(f"{file} cannot be read after line {at[0]}: {error}") from error
    except OSError as error:
        raise UserError(f"the table {file} cannot be read: {error.strerror}") from error


def _encoding(file: str) -> str:
    with open(file, "rb") as binary:
        start = binary.read(1024)
    check_not_pointer(file)
    for magic, what in _OTHER_FILES.items():
        if start.startswith(magic):
            raise UserError(
                f"{file} is {what}, not text. Save the table as CSV in UTF-8."
            )
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{file} is an HTML page, not a table. Download the file itself."
        )
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        raise UserError(
            f"{file} is not UTF-8 text: it has zero bytes, as in {start[:12]!r}, so it "
            "may be UTF-16 without a byte order mark. Save it as UTF-8."
        )
    return "utf-8-sig"
