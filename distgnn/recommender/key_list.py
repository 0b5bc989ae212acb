"""Lists of user or item keys that somebody gives: in a file, local or remote, or in the option itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.data.columns import Place, key_kind, to_keys
from distgnn.data.log_files import reading
from distgnn.types import UserError

_CHUNK = 1 << 14
_ENDINGS = (".txt", ".csv", ".parquet")


def read_key_list(source: str, what: str) -> Iterator[pa.Array]:
    """The keys of a list in chunks: int64 or string `[m]`, as the list has them.

    Args:
        source: a .txt file (a key a line), a .csv file (the column named `what` or `key`; a file of one column needs no
            header), a .parquet file (likewise, or its only column), or keys separated by commas.
        what: `user` or `item`.

    Raises:
        UserError: no such file, an unknown ending, no such column, a value that cannot be a key: with its place.
    """
    if not _is_file(source):
        yield from _chunks(key.strip() for key in source.split(",") if key.strip())
        return
    if not source.lower().endswith(_ENDINGS):
        raise UserError(f"{source}: a list of {what} keys must end in {', '.join(_ENDINGS)}")
    filesystem, path = storage.filesystem(source)
    with reading(source), filesystem.open(path, "rb") as stream:
        if source.lower().endswith(".parquet"):
            yield from _parquet_keys(stream, source, what)
            return
        # utf-8-sig: without the mark that some spreadsheets put first
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        keys = _csv_keys(lines, source, what) if source.lower().endswith(".csv") else _text_keys(lines)
        try:
            yield from _chunks(keys)
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not UTF-8 text ({error.reason}); write the list as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{source}: not valid CSV ({error})") from error


def _is_file(source: str) -> bool:
    return "://" in source or source.lower().endswith(_ENDINGS) or storage.exists(source)


def _chunks(keys: Iterable[str]) -> Iterator[pa.Array]:
    keys = iter(keys)
    while chunk := list(islice(keys, _CHUNK)):
        yield pa.array(chunk, pa.string())


def _text_keys(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        key = line.strip()
        if key:
            yield key


def _csv_keys(lines: Iterable[str], source: str, what: str) -> Iterator[str]:
    rows: Iterator[list[str]] = csv.reader(lines)
    first = next(rows, None)
    if first is None:
        return
    names = [name.strip() for name in first]
    column = next((names.index(name) for name in (what, "key") if name in names), None)
    if column is None:
        if len(first) > 1:
            raise _no_column(source, what, names)
        column, rows = 0, iter([first, *rows])
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if column >= len(row) or not row[column].strip():
            raise UserError(f"{source}, row {number}: no {what} key; drop or fill the row")
        yield row[column].strip()


def _parquet_keys(stream: object, source: str, what: str) -> Iterator[pa.Array]:
    with pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        column = next((name for name in (what, "key") if name in names), names[0] if len(names) == 1 else None)
        if column is None:
            raise _no_column(source, what, names)
        kind = key_kind(file.schema_arrow.field(column).type)
        if kind is None:
            found = file.schema_arrow.field(column).type
            raise UserError(f"{source}: column {column!r} is of type {found}; keys are whole numbers or text")
        row = 1
        for batch in file.iter_batches(_CHUNK, columns=[column]):
            values = batch.column(0)
            yield to_keys(values, kind, Place(source, column, row), what)
            row += len(values)


def _no_column(source: str, what: str, names: list[str]) -> UserError:
    listed = ", ".join(repr(name) for name in names)
    return UserError(
        f"{source}: no column {what!r} or 'key'; columns there: {listed}. Rename one, or give a plain list"
    )
