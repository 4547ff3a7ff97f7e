"""Results as a Parquet file, which cannot grow: they are collected in a journal."""

import itertools
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError
from vit_jax.files import atomic_write
from vit_jax.prediction.appending import Appended, Found, JsonLines, written
from vit_jax.prediction.records import Layout, text, to_row

logger = logging.getLogger(__name__)

_GROUP = 10_000  # rows of a row group, which are in memory at once


def check_installed() -> None:
    """Raises UserError if the library that writes Parquet is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow: pip install 'vit_jax[parquet]'; or pass a "
            f"file that ends in .jsonl or .csv ({error})"
        ) from error


class Parquet:
    """A Parquet file of results and, beside it, a journal of those still missing in it.

    The journal is FILE.partial.jsonl. It grows while images are predicted, and becomes
    part of FILE at the end, all at once. What a program that is killed leaves behind is
    the journal, from which the next one continues.
    """

    def __init__(self, path: pathlib.Path, layout: Layout):
        """Sets the file, which need not exist."""
        self.path, self._layout = path, layout
        self.journal = path.with_name(f"{path.name}.partial.jsonl")
        self._lines = Appended(self.journal, JsonLines())
        # Results in the file that are also in the journal: killed between writing one
        # and removing the other.
        self._in_file: set[str] = set()

    def found(self) -> Iterator[Found]:
        """Yields the results in the file and in the journal, each once.

        Raises:
          UserError: one of them has something else.
        """
        journal = self.journal.exists()
        for row in self._rows(["image", "error"]):
            if journal:
                self._in_file.add(row["image"])
            yield Found(row["image"], row["error"])
        for found in self._lines.found():
            if text(found.image) not in self._in_file:
                yield found

    def write(self, record: dict[str, Any]) -> None:
        """Appends a result to the journal."""
        self._lines.write(record)

    def __enter__(self) -> "Parquet":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._lines.__exit__(kind, *rest)
        new = self.journal.stat().st_size
        if kind is None and (new or not self.path.exists()):
            self._combine()
        if kind is None or not new:
            self.journal.unlink()
        else:
            logger.info(
                "the results so far are in %s; the same command continues from there",
                self.journal,
            )

    def _combine(self) -> None:
        """Replaces the file by one that has its rows and those of the journal."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {"class": pa.string(), self._layout.value: pa.float32()}
        schema = pa.schema(
            [(name, kinds.get(name.split("_")[0], pa.string())) for name in self._names]
        )
        rows = itertools.chain(self._rows(), self._new())
        with (
            written(self.path),
            atomic_write(self.path) as temporary,
            pq.ParquetWriter(temporary, schema) as writer,
        ):
            for group in _grouped(rows):
                writer.write_table(pa.Table.from_pylist(group, schema))

    def _new(self) -> Iterator[dict[str, Any]]:
        with self.journal.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if text(record["image"]) not in self._in_file:
                    cells = to_row(record, self._layout)
                    yield dict(zip(self._names, cells, strict=True))

    def _rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.path.exists():
            return
        try:
            with pq.ParquetFile(self.path) as file:
                if file.schema_arrow.names != self._names:
                    raise UserError(
                        f"{self.path} has other columns than "
                        f"{', '.join(self._names)}; pass another --out"
                    )
                for batch in file.iter_batches(_GROUP, columns=columns):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.path} is not a readable Parquet file ({error}); remove it, or "
                "pass another --out"
            ) from error

    @property
    def _names(self) -> list[str]:
        return self._layout.columns


def _grouped(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(rows, _GROUP)):
        yield group
