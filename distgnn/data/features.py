"""Feature tables of users or items: Parquet with a key column, and columns of numbers or of lists of numbers.

Nothing is held but one batch, and 4 bytes a row of the table. Errors name file, row and column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distgnn.data.columns import Place, key_kind, to_keys
from distgnn.data.log_files import LogFile, find_log_files, reading
from distgnn.types import UserError

_BATCH_VALUES = 1 << 21
_KEYS_AT_ONCE = 1 << 20
_BUFFER_BYTES = 1 << 20
_WORDS = {"integer": "whole numbers", "text": "text"}
_ALLOWED = "features must be numbers, or lists of numbers of one length: drop the column, or turn it into numbers"


@dataclass(frozen=True)
class FeatureColumn:
    """One column of a table: its name, and how many values it has in a row."""

    name: str
    width: int


@dataclass(frozen=True)
class Located:
    """Which nodes a table's rows belong to.

    Attributes:
        stable: stable ids, int32 `[rows]`, -1 for keys that are not known.
        n_unknown: rows of such keys.
    """

    stable: np.ndarray
    n_unknown: int


class FeatureTable:
    """A table of features, opened: its schema is sound, its values are not read yet.

    Args:
        uri: a Parquet file, or a folder or pattern of several with the same columns.
        key_column: name of the column of keys. role: `user` or `item`, for messages.

    Attributes:
        columns: those of features, in the file's order. width: f, values in a row over all columns.
        rows: of the table.

    Raises:
        UserError: no such file, no key column, no other column, one of another type than numbers or lists of numbers,
            or files with different columns.
    """

    def __init__(self, uri: str, key_column: str, role: str) -> None:
        self.uri, self.role, self._key_column = uri, role, key_column
        self._files = find_log_files(uri, "parquet")
        schemas = []
        self.rows = 0
        for file in self._files:
            with reading(file.name), file.open_raw() as raw:
                parquet = pq.ParquetFile(raw)
                schemas.append(parquet.schema_arrow)
                self.rows += parquet.metadata.num_rows
            self._check_schema(file.name, schemas[-1])
            if schemas[-1].names != schemas[0].names:
                raise UserError(f"{file.name}: has other columns than {self._files[0].name}; write them alike")
        if self.rows == 0:
            raise UserError(f"{uri}: has no row; it needs one for each {role}, or leave data.{role}_features out")
        self._kind = str(key_kind(schemas[0].field(key_column).type))
        self.columns = self._first_widths()
        self.width = sum(column.width for column in self.columns)

    def _check_schema(self, file: str, schema: pa.Schema) -> None:
        names, key = schema.names, self._key_column
        listed = ", ".join(repr(name) for name in names) or "none"
        if key not in names:
            raise UserError(f"{file}: no column {key!r}; columns there: {listed}. Rename the column of keys to it")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{file}: column {name!r} is there {names.count(name)} times; rename one")
        if len(names) == 1:
            raise UserError(f"{file}: has no column but {key!r}; features must stand beside the keys")
        if key_kind(schema.field(key).type) is None:
            raise UserError(f"{file}: column {key!r} has type {schema.field(key).type}; keys must be integers or text")
        for field in schema:
            if field.name != key and not (_is_number(field.type) or _is_list(field.type)):
                raise UserError(f"{file}: column {field.name!r} has type {field.type}; {_ALLOWED}")

    def _first_widths(self) -> list[FeatureColumn]:
        """Columns with the lengths that the first row gives to lists."""
        name, batch = next(self._record_batches(1))[:2]
        columns = []
        for field, values in zip(batch.schema, batch.columns, strict=True):
            if field.name == self._key_column:
                continue
            width = 1
            if _is_list(field.type):
                place = Place(name, field.name, 1)
                _refuse_nulls(values, place)
                width = int(pc.list_value_length(values)[0].as_py())
                if width == 0:
                    raise place.error(0, "the list is empty; lists must have values")
            columns.append(FeatureColumn(field.name, width))
        return columns

    def _record_batches(self, rows: int, columns: list[str] | None = None) -> Iterator[tuple[str, pa.RecordBatch, int]]:
        """Name of the file, a batch of at most `rows`, and the number of its first row, counted from 1."""
        for file in self._files:
            yield from _batches_of(file, rows, columns)

    def locate(self, known: pa.Array) -> Located:
        """Find the rows' nodes.

        Args:
            known: all keys by stable id, ascending: int64 or large_string `[n]`.

        Raises:
            UserError: a null key, one twice, keys of another kind than the known ones, or none of the known.
        """
        kind = "integer" if pa.types.is_integer(known.type) else "text"
        if kind != self._kind:
            raise UserError(
                f"{self.uri}: column {self._key_column!r} holds {_WORDS[self._kind]}, but {self.role} keys of the log "
                f"are {_WORDS[kind]}; write them alike"
            )
        stable = np.full(self.rows, -1, np.int32)
        taken = np.zeros(len(known), bool)
        at = 0
        batches = self._record_batches(max(_KEYS_AT_ONCE, len(known)), [self._key_column])
        for name, batch, row in batches:
            place = Place(name, self._key_column, row)
            keys = to_keys(batch.column(batch.schema.get_field_index(self._key_column)), kind, place, self.role)
            found = _find(keys, known)
            self._refuse_repeated(found, taken, keys, place)
            stable[at : at + len(found)] = found
            at += len(found)
        n_unknown = int((stable < 0).sum())
        if n_unknown == self.rows:
            raise UserError(
                f"{self.uri}: none of the keys in column {self._key_column!r} is a {self.role} of the log; check the "
                f"file, and that its keys are written as in the log"
            )
        return Located(stable, n_unknown)

    def _refuse_repeated(self, found: np.ndarray, taken: np.ndarray, keys: pa.Array, place: Place) -> None:
        """Note which nodes have a row; the first that has one already is an error."""
        rows = np.flatnonzero(found >= 0)
        nodes = found[rows]
        again = taken[nodes]
        again[_not_first(nodes)] = True
        if again.any():
            row = int(rows[np.flatnonzero(again)[0]])
            raise place.error(row, f"the key {keys[row].as_py()!r} has a row already; give each {self.role} one row")
        taken[nodes] = True

    def batches(self) -> Iterator[np.ndarray]:
        """The values of all rows in order, float32 `[m, f]` at a time.

        Raises:
            UserError: a null, a value that is not finite as float32, a list of another length than in the first row.
        """
        for name, batch, row in self._record_batches(max(1, _BATCH_VALUES // self.width)):
            values = np.empty((batch.num_rows, self.width), np.float32)
            start = 0
            for column in self.columns:
                array = batch.column(batch.schema.get_field_index(column.name))
                place = Place(name, column.name, row)
                values[:, start : start + column.width] = _to_float32(array, column.width, place)
                start += column.width
            yield values


def _batches_of(file: LogFile, rows: int, columns: list[str] | None) -> Iterator[tuple[str, pa.RecordBatch, int]]:
    row = 1
    with reading(file.name), file.open_raw() as raw:
        # Pages are read one by one: a row group of long vectors may be larger than memory.
        parquet = pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        for batch in parquet.iter_batches(batch_size=rows, columns=columns):
            yield file.name, batch, row
            row += batch.num_rows


def _is_number(arrow_type: pa.DataType) -> bool:
    return pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type)


def _is_list(arrow_type: pa.DataType) -> bool:
    lists = pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type)
    return (lists or pa.types.is_fixed_size_list(arrow_type)) and _is_number(arrow_type.value_type)


def _refuse_nulls(values: pa.Array, place: Place, each: int = 1) -> None:
    """`each`: values in a row."""
    if values.null_count:
        at = int(pc.index(values.is_null(), True).as_py())
        raise place.error(at // each, "a null; fill it, or drop the row (who has no row gets zeros)")


def _to_float32(values: pa.Array, width: int, place: Place) -> np.ndarray:
    """A column of a batch, float32 `[m, width]`."""
    _refuse_nulls(values, place)
    if _is_list(values.type):
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if (lengths != width).any():
            at = int(np.flatnonzero(lengths != width)[0])
            raise place.error(
                at, f"the list has length {lengths[at]}, in the first row it is {width}; write one length"
            )
        values = values.flatten()
        _refuse_nulls(values, place, width)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    with np.errstate(over="ignore"):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        value = values[int(wrong[0])].as_py()
        raise place.error(int(wrong[0]) // width, f"{value} is not finite as float32; mend it, or drop the row")
    return numbers.reshape(-1, width)


def _find(keys: pa.Array, known: pa.Array) -> np.ndarray:
    """Stable ids int32 `[m]`, -1 for keys that are not known."""
    if pa.types.is_integer(known.type):
        all_keys, wanted = known.to_numpy(), keys.to_numpy()
        at = np.minimum(np.searchsorted(all_keys, wanted), len(all_keys) - 1)
        return np.where(all_keys[at] == wanted, at, -1).astype(np.int32)
    return pc.fill_null(pc.index_in(keys.cast(known.type), value_set=known), -1).to_numpy(zero_copy_only=False)


def _not_first(values: np.ndarray) -> np.ndarray:
    """Positions of values that stand earlier in the array too."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return np.flatnonzero(~first)
