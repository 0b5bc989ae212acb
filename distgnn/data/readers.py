"""Interaction logs as a stream of record batches with columns user, item[, timestamp][, weight].

Formats: CSV and TSV (also compressed), Parquet, and LightGCN text (`user item item ...` a line). Nothing is held but
one block; errors name file, row and column.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from distgnn.data import csv_log
from distgnn.data.columns import LogColumns, Place, key_kind, timestamp_kind, to_keys, to_timestamps, to_weights
from distgnn.data.log_files import LogFile, find_log_files, reading
from distgnn.types import UserError

_LINES_BYTES = 8 << 20
_SAMPLE_BYTES = 1 << 20


def read_interactions(
    uri: str,
    *,
    format: str = "auto",
    user_column: str = "user",
    item_column: str = "item",
    timestamp_column: str = "",
    weight_column: str = "",
    batch_rows: int = 1 << 20,
) -> Iterator[pa.RecordBatch]:
    """Stream a log.

    Args:
        uri: a file, a folder or a glob, local or any fsspec URI. A folder is read recursively, in the order of names.
        format: `auto` (by extension: .csv .tsv .parquet .pq, .txt for LightGCN text; .gz .bz2 .zst behind the text
            ones), csv, parquet or lightgcn.
        user_column: name of the column of user keys.
        item_column: name of the column of item keys.
        timestamp_column: name, or empty where the log has none.
        weight_column: name, or empty where the log has none.
        batch_rows: the most rows of a batch.

    Yields:
        Batches of at least one row, all of one schema: `user`, `item` (int64 or string, as the log has them; text
        columns of canonical integers are int64), `timestamp` (int64: whole numbers as they are; fractional seconds,
        dates and times in microseconds), `weight` (float32).

    Raises:
        UserError: missing column, null key, timestamp or weight that is no number, keys of two kinds, an empty log,
            a damaged or unreadable file.
    """
    columns = LogColumns(user_column, item_column, timestamp_column, weight_column)
    files = find_log_files(uri, format)
    reader = {"csv": _read_csv, "parquet": _read_parquet, "lightgcn": _read_lightgcn}[files[0].format]
    rows = 0
    for batch in reader(files, columns, batch_rows):
        for start in range(0, batch.num_rows, batch_rows):
            part = batch.slice(start, batch_rows)
            rows += part.num_rows
            yield part
    if rows == 0:
        raise UserError(f"{uri}: the log is empty; it has no interaction to learn from")


def _convert(batch: pa.RecordBatch, columns: LogColumns, kinds: dict[str, str], file: str, row: int) -> pa.RecordBatch:
    """A batch under the roles' names and types; `row` is the number of its first row."""
    arrays = []
    for role, name in columns.by_role().items():
        values = batch.column(batch.schema.get_field_index(name))
        place = Place(file, name, row)
        if role == "timestamp":
            arrays.append(to_timestamps(values, kinds[role], place))
        elif role == "weight":
            arrays.append(to_weights(values, place))
        else:
            arrays.append(to_keys(values, kinds[role], place, role))
    return pa.RecordBatch.from_arrays(arrays, names=list(columns.by_role()))


def _read_csv(files: list[LogFile], columns: LogColumns, batch_rows: int) -> Iterator[pa.RecordBatch]:
    delimiters = [csv_log.delimiter_of(file, columns) for file in files]
    kinds = csv_log.kinds(files, columns, delimiters)
    names = list(columns.by_role().values())
    for file, delimiter in zip(files, delimiters, strict=True):
        row = 1
        for block in csv_log.blocks(file, names, delimiter):
            yield _convert(block, columns, kinds, file.name, row)
            row += block.num_rows


def _read_parquet(files: list[LogFile], columns: LogColumns, batch_rows: int) -> Iterator[pa.RecordBatch]:
    kinds = _parquet_kinds(files, columns)
    names = list(columns.by_role().values())
    for file in files:
        row = 1
        with reading(file.name), file.open_raw() as raw:
            parquet = pq.ParquetFile(raw, page_checksum_verification=True)
            for batch in parquet.iter_batches(batch_size=batch_rows, columns=names):
                yield _convert(batch, columns, kinds, file.name, row)
                row += batch.num_rows


def _parquet_kinds(files: list[LogFile], columns: LogColumns) -> dict[str, str]:
    """Kind of each column, from the schemas; all files agree."""
    kinds: dict[str, str] = {}
    for file in files:
        with reading(file.name), file.open_raw() as raw:
            schema = pq.read_schema(raw)
        columns.check_present(file.name, schema.names)
        for role, name in columns.by_role().items():
            if role == "weight":
                continue
            arrow_type = schema.field(name).type
            kind = timestamp_kind(arrow_type) if role == "timestamp" else key_kind(arrow_type)
            if kind is None:
                raise UserError(f"{file.name}: column {name!r} has type {arrow_type}; {_ALLOWED[role]}")
            if kinds.setdefault(role, kind) != kind:
                raise UserError(
                    f"{file.name}: column {name!r} has type {arrow_type}, another kind than in {files[0].name};"
                    f" write it alike in all files"
                )
    return kinds


_ALLOWED = {
    "user": "keys must be integers or text (a column of integers with nulls turns into floats: drop the nulls)",
    "item": "keys must be integers or text (a column of integers with nulls turns into floats: drop the nulls)",
    "timestamp": "a timestamp must be integers, seconds as floats, or dates and times (non-numeric text is refused)",
}


def _read_lightgcn(files: list[LogFile], columns: LogColumns, batch_rows: int) -> Iterator[pa.RecordBatch]:
    if columns != LogColumns("user", "item"):
        raise UserError(
            f"{files[0].name}: LightGCN text (`user item item ...` a line) has no named columns, timestamps or weights;"
            f" leave data.*_column out, or set data.format"
        )
    for file in files:
        yield from _lightgcn_file(file, batch_rows)


def _lightgcn_file(file: LogFile, batch_rows: int) -> Iterator[pa.RecordBatch]:
    users: list[int] = []
    items: list[int] = []
    with reading(file.name), file.open() as stream:
        for number, line in enumerate(_lines(stream), start=1):
            try:
                user, *row = map(int, line.split())
            except ValueError as error:
                if not line.strip():
                    continue
                word = next(word for word in line.split() if not _is_int(word))
                raise UserError(
                    f"{file.name}, row {number}: {word.decode(errors='replace')!r} is not an integer;"
                    f" a line reads `user item item ...` (for a table set data.format = csv)"
                ) from error
            users.extend([user] * len(row))
            items.extend(row)
            if len(users) >= batch_rows:
                yield _pairs(users, items, file, number)
                users, items = [], []
    if users:
        yield _pairs(users, items, file, number)


def _is_int(word: bytes) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True


def _pairs(users: list[int], items: list[int], file: LogFile, row: int) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_arrays([pa.array(users, pa.int64()), pa.array(items, pa.int64())], ["user", "item"])
    except OverflowError as error:
        raise UserError(f"{file.name}, row {row} or before: an id is beyond 64 bits") from error


def _lines(stream: pa.NativeFile) -> Iterator[bytes]:
    """Lines of a stream, read in blocks."""
    rest = b""
    while block := stream.read(_LINES_BYTES):
        lines = (rest + bytes(block)).split(b"\n")
        rest = lines.pop()
        yield from lines
    if rest:
        yield rest


def estimate_rows(uri: str, *, format: str = "auto") -> int:
    """Number of interactions of a log: exact for Parquet (metadata), from size and a sample of the head otherwise.

    Raises:
        UserError: nothing there, or an unreadable file.
    """
    return sum(_estimate(file) for file in find_log_files(uri, format))


def _estimate(file: LogFile) -> int:
    if file.format == "parquet":
        with reading(file.name), file.open_raw() as raw:
            return int(pq.ParquetFile(raw).metadata.num_rows)
    size = file.size()
    with reading(file.name), file.open_raw() as raw:
        head = raw.read(_SAMPLE_BYTES)
    text = _decompressed(head, file)
    if not head or not text:
        return 0
    lines = max(text.count(b"\n"), 1)
    # A LightGCN line holds its user and then one interaction a word; a CSV has a header line.
    rows = len(text.split()) - lines if file.format == "lightgcn" else lines - (len(head) == size)
    return max(round(rows * size / len(head)), 1)


def _decompressed(head: bytes, file: LogFile) -> bytes:
    """What the first bytes of a file decompress to, as far as they do."""
    if file.compression is None:
        return head
    if file.compression == "gzip":
        with reading(file.name):
            return zlib.decompressobj(wbits=31).decompress(head)
    with reading(file.name), file.open() as stream:
        return bytes(stream.read(_SAMPLE_BYTES))
