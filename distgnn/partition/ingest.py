"""Logs in, distinct labelled edges in stable ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.config import DataConfig
from distgnn.data.id_maps import IdMapBuilder
from distgnn.data.interactions import TEST, TRAIN, VALID, Interactions, deduplicate
from distgnn.data.log_files import reading
from distgnn.data.readers import read_interactions
from distgnn.data.splits import hold_out_of_train, split_edges
from distgnn.partition.sources import Sources
from distgnn.types import UserError

_LABELS = {"train": TRAIN, "valid": VALID, "test": TEST}
_RESERVED = ("stable_id", "key", "degree", "degree_fit")


@dataclass(frozen=True)
class RawLogs:
    """Everything read, rows one log after the other.

    Attributes:
        user, item: stable ids, int32 `[rows]`.
        timestamp: int64 `[rows]`, or None.
        weight: float32 `[rows]`, or None.
        log_rows: rows of each log.
        user_keys, item_keys: keys by stable id.
        users, items: the sources' own columns by stable id (nulls where the table lacks a key), without columns where
            there is no table.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray | None
    weight: np.ndarray | None
    log_rows: list[int]
    user_keys: pa.Array
    item_keys: pa.Array
    users: pa.Table
    items: pa.Table


@dataclass(frozen=True)
class LabelledEdges:
    """Distinct edges and what each is for.

    Attributes:
        edges: ordered by (user, item), `[E]`.
        labels: TRAIN (fit), VALID or TEST, int8 `[E]`.
    """

    edges: Interactions
    labels: np.ndarray

    def of(self, *labels: int) -> Interactions:
        """The edges with one of some labels."""
        return self.edges.select(np.isin(self.labels, labels))


@dataclass(frozen=True)
class LogCounts:
    """What deduplication found.

    Attributes:
        rows: read.
        duplicates: rows that repeat an edge of their own log.
        dropped: by role, edges of that log left out since an earlier log has them.
    """

    rows: int
    duplicates: int
    dropped: dict[str, int]


def read_logs(sources: Sources) -> RawLogs:
    """Stream all logs and tables.

    Raises:
        UserError: as the readers; keys of two kinds; one user or one item only; a table without the key column or
            with a key twice.
    """
    users, items = IdMapBuilder("user"), IdMapBuilder("item")
    columns: dict[str, list[np.ndarray]] = {"timestamp": [], "weight": []}
    log_rows = []
    for log in sources.logs:
        before = users.rows
        for batch in _batches(sources, log.uri):
            users.append(batch.column("user"), log.uri)
            items.append(batch.column("item"), log.uri)
            for name, chunks in columns.items():
                if name in batch.schema.names:
                    chunks.append(batch.column(name).to_numpy(zero_copy_only=False))
        log_rows.append(users.rows - before)
    rows = sum(log_rows)
    user_table = _append_table(users, sources.users, sources.user_column)
    item_table = _append_table(items, sources.items, sources.item_column)
    user_keys, user = users.finish()
    item_keys, item = items.finish()
    for count, what in ((len(user_keys), "user"), (len(item_keys), "item")):
        if count == 1:
            raise UserError(f"{sources.logs[0].uri}: the log has one {what} only; there is nothing to recommend by")
    timestamp, weight = (np.concatenate(chunks) if chunks else None for chunks in columns.values())
    return RawLogs(
        user[:rows],
        item[:rows],
        timestamp,
        weight,
        log_rows,
        user_keys,
        item_keys,
        _by_stable_id(user_table, user[rows:], len(user_keys)),
        _by_stable_id(item_table, item[rows:], len(item_keys)),
    )


def _batches(sources: Sources, uri: str) -> Iterator[pa.RecordBatch]:
    return read_interactions(
        uri,
        format=sources.format,
        user_column=sources.user_column,
        item_column=sources.item_column,
        timestamp_column=sources.timestamp_column,
        weight_column=sources.weight_column,
    )


def _append_table(builder: IdMapBuilder, uri: str | None, key_column: str) -> pa.Table:
    """Make a table's keys known; its other columns, without names that the dataset uses itself."""
    if uri is None:
        return pa.table({})
    filesystem, path = storage.filesystem(uri)
    with reading(uri), filesystem.open(path, "rb") as stream:
        table = pq.read_table(stream)
    if key_column not in table.column_names:
        raise UserError(f"{uri}: no column {key_column!r}; columns there: {', '.join(table.column_names)}")
    keys = table[key_column].combine_chunks()
    if keys.null_count or len(keys.unique()) != len(keys):
        raise UserError(f"{uri}: column {key_column!r} has a null or a key twice; every row must have a key of its own")
    kind = pa.int64() if pa.types.is_integer(keys.type) else pa.large_string()
    builder.append(keys.cast(kind), uri)
    rest = table.drop_columns([key_column])
    return rest.rename_columns([f"table_{name}" if name in _RESERVED else name for name in rest.column_names])


def _by_stable_id(table: pa.Table, stable: np.ndarray, n: int) -> pa.Table:
    """A table's rows in the order of stable ids, nulls for ids that it lacks."""
    if not table.column_names:
        return table
    row = np.full(n, -1, np.int64)
    row[stable] = np.arange(len(stable))
    return table.take(pa.array(row, mask=row < 0))


def label_edges(raw: RawLogs, sources: Sources, data: DataConfig, seed: int) -> tuple[LabelledEdges, LogCounts]:
    """Deduplicate and split.

    Given splits keep their labels: an edge of several logs belongs to the first (so none of the test is in train), and
    without validation a tenth of each user's train edges becomes one.
    """
    found = deduplicate(
        raw.user, raw.item, raw.timestamp, raw.weight, len(raw.user_keys), len(raw.item_keys), raw.log_rows
    )
    edges = found.edges
    roles = [log.role for log in sources.logs]
    if sources.split == "given":
        labels = np.array([_LABELS[role] for role in roles], np.int8)[found.source]
        if not sources.has_valid:
            labels = hold_out_of_train(edges.user, edges.item, labels, seed)
        dropped = dict(zip(roles, found.dropped, strict=True))
        duplicates = found.duplicates
    else:
        labels = split_edges(
            edges.user,
            edges.item,
            edges.timestamp,
            kind=sources.split,
            holdout=data.holdout,
            valid_ratio=data.valid_ratio,
            test_ratio=data.test_ratio,
            seed=seed,
            position=found.first_row,
        )
        dropped, duplicates = {}, found.duplicates + sum(found.dropped)
    if not (labels == TRAIN).any():
        raise UserError(f"{sources.name}: nothing is left to train on after the split; hold out less")
    return LabelledEdges(edges, labels), LogCounts(len(raw.user), duplicates, dropped)


def data_hash(raw: RawLogs, labelled: LabelledEdges) -> str:
    """SHA-256 of keys and edges in stable ids, whatever library wrote them to which files."""
    digest = hashlib.sha256()
    for keys in (raw.user_keys, raw.item_keys):
        digest.update(f"{keys.type} {len(keys)}\n".encode())
        if pa.types.is_integer(keys.type):
            digest.update(keys.to_numpy().astype("<i8").data)
        else:
            offsets = np.frombuffer(keys.buffers()[1], "<i8", len(keys) + 1, keys.offset * 8)
            digest.update((offsets - offsets[0]).data)
            digest.update(memoryview(keys.buffers()[2])[offsets[0] : offsets[-1]])
    edges = labelled.edges
    for array, dtype in (
        (edges.user, "<i8"),
        (edges.item, "<i8"),
        (labelled.labels, "i1"),
        (edges.timestamp, "<i8"),
        (edges.weight, "<f4"),
    ):
        digest.update(b"-" if array is None else np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()
