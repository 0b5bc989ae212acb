"""CSV and TSV logs: header, kinds of columns, streamed blocks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as pa_csv

from distgnn.data.columns import LogColumns, has_value, is_integer_text
from distgnn.data.log_files import LogFile, reading
from distgnn.types import UserError

_BLOCK_BYTES = 8 << 20
_DELIMITERS = (",", "\t", ";", "|")


def _header(file: LogFile) -> str:
    with reading(file.name), file.open() as stream:
        head = stream.read(1 << 16)
    text = bytes(head).decode("utf-8-sig", errors="replace")
    return next((line for line in io.StringIO(text) if line.strip()), "").rstrip("\r\n")


def delimiter_of(file: LogFile, columns: LogColumns) -> str:
    """The separator under which the header has all columns; by the extension where none does.

    Raises:
        UserError: an empty file, a missing or doubled column.
    """
    header = _header(file)
    if not header:
        raise UserError(f"{file.name}: the file is empty; it needs a header line and interactions")
    usual = "\t" if file.is_tab_separated else ","
    wanted = set(columns.by_role().values())
    for delimiter in (usual, *_DELIMITERS):
        if wanted <= set(_split(header, delimiter)):
            columns.check_present(file.name, _split(header, delimiter))
            return delimiter
    columns.check_present(file.name, _split(header, usual))
    return usual


def _split(header: str, delimiter: str) -> list[str]:
    return next(csv.reader([header], delimiter=delimiter))


def blocks(file: LogFile, names: list[str], delimiter: str) -> Iterator[pa.RecordBatch]:
    """The named columns as text, block by block, in file order; empty fields are null."""
    with reading(file.name), file.open() as stream:
        reader = pa_csv.open_csv(
            stream,
            # One thread: row numbers in error messages, and blocks that do not depend on the machine.
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        yield from reader


def kinds(files: list[LogFile], columns: LogColumns, delimiters: list[str]) -> dict[str, str]:
    """Kind of every column: `integer`/`text` keys, `whole`/`clock` timestamps, by reading the columns once.

    A column of keys is integer only if all its values are, in all files: "7" and "007" stay two keys where one is
    spelt so. Reading stops as soon as no column can be of whole numbers.
    """
    open_roles = {role: name for role, name in columns.by_role().items() if role != "weight"}
    seen = set()
    for file, delimiter in zip(files, delimiters, strict=True):
        for block in blocks(file, list(open_roles.values()), delimiter):
            for role, name in list(open_roles.items()):
                values = block.column(block.schema.get_field_index(name))
                if has_value(values):
                    seen.add(role)
                if not is_integer_text(values):
                    del open_roles[role]
            if not open_roles:
                break
        if not open_roles:
            break
    whole = {role for role in open_roles if role in seen}
    result = {role: "integer" if role in whole else "text" for role in ("user", "item")}
    if columns.timestamp:
        result["timestamp"] = "whole" if "timestamp" in open_roles else "clock"
    return result
