"""Parquet files as tables, with the names that Hugging Face's `datasets` write.

Images are paths, or their bytes: a column of bytes, or of structs of `bytes` and `path`
as Hugging Face writes them. The bytes are not read here; see parquet_images.py.
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from vit_jax.data.sources.tables.files import Row, Table, check_not_pointer
from vit_jax.errors import UserError
from vit_jax.words import one_line

_ROWS_AT_ONCE = 4096


class EmbeddedImage(str):
    """The name of an image whose bytes are in the table: "train.parquet[17]"."""


class ParquetTable(Table):
    """A Parquet file; whole numbers that stand for classes become the classes' names.

    Attributes:
      bytes_column: image column → the column of its bytes, as Parquet names it.
    """

    unit = "row"

    def __init__(self, file: str):
        """Reads the schema.

        Raises:
          UserError: pyarrow is not installed, or the file cannot be read.
        """
        with opened(file) as parquet:
            schema = parquet.schema_arrow
        super().__init__(file, list(schema.names))
        types = {field.name: field.type for field in schema}
        self.bytes_column = {
            name: f"{name}.bytes" if _is_image_struct(kind) else name
            for name, kind in types.items()
            if _is_image_struct(kind) or _is_bytes(kind)
        }
        features = _features(schema.metadata or {})
        marked = {
            name
            for name in self.bytes_column
            if isinstance(about := features.get(name), dict)
            and about.get("_type") == "Image"
        }
        self.images = tuple(marked or self.bytes_column)
        self.lists = frozenset(filter(lambda name: _is_list(types[name]), types))
        self.class_names = {
            name: names
            for name in types
            if (names := _class_names(features.get(name))) is not None
        }
        self.single = frozenset(self.class_names.keys() - self.lists)

    def rows(self, columns: Collection[str]) -> Iterator[tuple[int, Row | str]]:
        wanted = dict.fromkeys(name for name in columns if name in self.columns)
        read = [name for name in wanted if name not in self.bytes_column]
        read += [
            f"{name}.path"
            for name in wanted
            if self.bytes_column.get(name, name) != name
        ]
        number = 0
        with opened(self.file) as parquet:
            for group in range(parquet.num_row_groups):
                values = {
                    name: self._images(parquet, group, name, number)
                    for name in wanted
                    if name in self.bytes_column
                }
                for row in _rows(parquet, group, read):
                    number += 1
                    row |= {name: next(some) for name, some in values.items()}
                    yield number, self._named(row)

    def _images(self, parquet, group: int, column: str, before: int) -> Iterator[Any]:
        """Yields the name or path of each image of a row group; None without either."""
        paths = None
        if self.bytes_column[column] != column:
            read = _rows(parquet, group, [f"{column}.path"])
            paths = ((row[column] or {}).get("path") for row in read)
        for number, embedded in enumerate(
            _embedded(parquet, group, self.bytes_column[column]), before
        ):
            path = next(paths) if paths else None
            yield EmbeddedImage(f"{self.name}[{number}]") if embedded else path

    def _named(self, row: Row) -> Row | str:
        for column, names in self.class_names.items():
            if column not in row:
                continue
            value = row[column]
            try:
                row[column] = (
                    [_class_name(one, names) for one in value]
                    if isinstance(value, list)
                    else _class_name(value, names)
                )
            except IndexError:
                return f"{column} is {value}, but the file names {len(names)} classes"
        return row


@contextlib.contextmanager
def opened(file: str) -> Iterator[Any]:
    """Opens a Parquet file such that reading holds only a part of it in memory.

    Raises:
      UserError: pyarrow is not installed, or the file cannot be read, now or in the
        block.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            f"{file}: reading Parquet files needs pyarrow: pip install "
            "'vit_jax[parquet]'"
        ) from error
    try:
        check_not_pointer(file)
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise UserError(f"the table {file} cannot be read: {reason}") from error


def _rows(parquet, group: int, columns: list[str]) -> Iterator[Row]:
    """Yields the values of some columns for each row of a row group."""
    if not columns:
        yield from ({} for _ in range(parquet.metadata.row_group(group).num_rows))
        return
    for batch in parquet.iter_batches(
        _ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
    ):
        yield from batch.to_pylist()


def _embedded(parquet, group: int, column: str) -> Iterator[bool]:
    """Yields whether each row of a row group has an image's bytes."""
    about = parquet.metadata.row_group(group)
    for index in range(about.num_columns):
        chunk = about.column(index)
        if chunk.path_in_schema != column or not chunk.statistics:
            continue
        if chunk.statistics.has_null_count:
            missing = chunk.statistics.null_count
            if missing in (0, about.num_rows):
                yield from [not missing] * about.num_rows
                return
    # Only the bytes themselves tell.
    for batch in parquet.iter_batches(
        64, row_groups=[group], columns=[column], use_threads=False
    ):
        yield from (one.is_valid for one in leaf(batch, column))


def leaf(batch, column: str):
    """Returns the bytes of a batch that was read with this column alone."""
    values = batch.column(0)
    return values.field("bytes") if column != batch.schema.names[0] else values


def _is_bytes(kind) -> bool:
    from pyarrow import types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
    )


def _is_image_struct(kind) -> bool:
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return fields.keys() == {"bytes", "path"} and _is_bytes(fields["bytes"])


def _is_list(kind) -> bool:
    from pyarrow import types

    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    )


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Returns Hugging Face's description of each column, if the file has one."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Returns the names of a feature of classes, or of a list of them; else None."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _class_names(feature.get("feature"))
    if feature.get("_type") == "ClassLabel" and feature.get("names"):
        return tuple(str(name).strip() for name in feature["names"])
    return None


def _class_name(value: Any, names: tuple[str, ...]) -> Any:
    """Returns a class's name; None for −1, which marks unlabelled examples."""
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if value < 0:
        raise IndexError(value)
    return names[value]
