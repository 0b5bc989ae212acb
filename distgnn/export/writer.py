"""Writing an export, in chunks: never more in memory than a chunk of rows, the items' vectors and the keys."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import publishing, storage
from distgnn.export.fold_in import FoldIn
from distgnn.export.format import (
    FILES,
    FOLD_IN,
    FORMAT,
    FORMAT_VERSION,
    ITEMS,
    USERS,
    content_hash,
    dtype_of,
    schema,
)
from distgnn.export.table import Table
from distgnn.partition.dataset import PreparedDataset
from distgnn.types import UserError

CHUNK_ROWS = 1 << 16
Chunks = Iterable[tuple[np.ndarray, Table]]
Seen = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def write_export(
    uri: str,
    *,
    model: str,
    dataset: PreparedDataset,
    phase: str,
    users: Table | Chunks,
    items: Table | Chunks,
    seen: Seen | None = None,
) -> None:
    """Write an export; it appears whole or not at all.

    Args:
        uri: folder to create, a local path or any fsspec URI.
        model: name of the encoder or student.
        dataset: gives keys, the items' popularity, and the items that each user has in the phase's training edges.
        phase: `fit` (train edges) or `full` (train and validation edges).
        users: all rows by stable id, or chunks (stable ids int64 `[m]`, their rows) that hold every user once, in any
            order. They are asked for after the items.
        items: likewise; of the same width and dtype.
        seen: gives the stable items, int64 CSR, of stable users int64 `[m]`, those of the chunk asked for last; None:
            the phase's graph is opened from the dataset.

    Raises:
        UserError: the folder is in use or cannot be written; vectors that are not finite.
        ValueError: rows missing or given twice, or of another width or dtype.
    """
    seen_of = seen or _seen_in_graph(dataset, phase)
    with publishing.publish_directory(uri) as staging:
        item_rows = _RowFile(staging, ITEMS, dataset.item_keys(), dataset.n_items)
        vectors: np.ndarray | None = None
        degree = dataset.item_degree(phase)
        for stable, rows in _in_order(items):
            item_rows.write(stable, rows, {"degree": pa.array(degree[stable])})
            if vectors is None:
                vectors = np.empty((dataset.n_items, rows.dim), np.float32)
            vectors[stable] = rows.dequantize()
        item_rows.close()
        assert vectors is not None
        user_rows = _RowFile(staging, USERS, dataset.user_keys(), dataset.n_users)
        fold_in = FoldIn(vectors)
        for stable, rows in _in_order(users):
            indptr, items_seen = seen_of(stable)
            items_seen = items_seen.astype(np.int32)
            user_rows.write(stable, rows, {"seen": pa.ListArray.from_arrays(indptr.astype(np.int32), items_seen)})
            fold_in.add(indptr, items_seen, rows.dequantize())
        user_rows.close()
        if user_rows.kind != item_rows.kind:
            raise ValueError(f"users have rows of {user_rows.kind}, items of {item_rows.kind}")
        _write_array(staging / FOLD_IN, fold_in.solve())
        dtype, dim = user_rows.kind
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": model,
            "phase": phase,
            "dataset": dataset.name,
            "dataset_hash": dataset.data_hash,
            "dtype": dtype,
            "dim": dim,
            "n_users": dataset.n_users,
            "n_items": dataset.n_items,
            "files": {name: _facts(staging / name) for name in FILES},
        }
        manifest["content_hash"] = content_hash(manifest)
        storage.write_json(str(staging / storage.MANIFEST), manifest)


def _seen_in_graph(dataset: PreparedDataset, phase: str) -> Seen:
    """From the phase's graph in one of the dataset's partitionings: they all hold the same edges."""
    facts = dataset.manifest["partitions"][dataset.partitionings()[0]]
    topology = dataset.topology(phase, facts["method"], facts["parts"])
    return lambda stable: topology.neighbors(np.asarray(topology.node_id[stable], np.int64))


def _in_order(rows: Table | Chunks) -> Iterator[tuple[np.ndarray, Table]]:
    """Chunks whose rows go by stable id."""
    if isinstance(rows, Table):
        for start in range(0, len(rows), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, len(rows))
            yield np.arange(start, stop), rows.take(slice(start, stop))
        return
    for stable, chunk in rows:
        if len(stable):
            order = np.argsort(stable)
            yield np.asarray(stable, np.int64)[order], chunk.take(order)


class _RowFile:
    """One of the two Parquet files, a row group a chunk.

    Args:
        staging: folder. name: USERS or ITEMS. keys: of all nodes, by stable id. n: number of nodes.
    """

    def __init__(self, staging: Path, name: str, keys: pa.Array, n: int) -> None:
        self._path, self._name, self._keys = staging / name, name, keys
        self._written = np.zeros(n, np.bool_)
        self._writer: pq.ParquetWriter | None = None
        self.kind = ("", 0)  # dtype and width

    def write(self, stable: np.ndarray, rows: Table, extra: dict[str, pa.Array]) -> None:
        kind = (dtype_of(rows.values), rows.dim)
        if self._writer is None:
            self.kind = kind
            columns = schema(self._name, self._keys.type, *kind)
            # Parquet has no 8-bit integers: plain they would take four bytes, as a dictionary they take one.
            dictionary: bool | list[str] = ["vector.list.element"] if kind[0] == "int8" else False
            self._writer = pq.ParquetWriter(self._path, columns, compression="zstd", use_dictionary=dictionary)
        if kind != self.kind:
            raise ValueError(f"{self._name}: rows of {kind} after rows of {self.kind}")
        if self._written[stable].any() or len(np.unique(stable)) < len(stable):
            raise ValueError(f"{self._name}: a row is given twice")
        self._written[stable] = True
        if rows.scale is None and not np.isfinite(rows.values).all():
            raise UserError(
                "the model's vectors are not finite: training diverged; lower optim.lr or raise loss.temperature"
            )
        flat = pa.array(np.ascontiguousarray(rows.values).reshape(-1))
        columns = {
            "stable_id": pa.array(stable),
            "key": self._keys.take(pa.array(stable)),
            "vector": pa.FixedSizeListArray.from_arrays(flat, rows.dim),
        }
        if rows.scale is not None:
            columns["scale"] = pa.array(rows.scale)
        self._writer.write_table(pa.table({**columns, **extra}, schema=self._writer.schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if not self._written.all():
            raise ValueError(f"{self._name}: {int((~self._written).sum())} of {len(self._written)} rows are missing")


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    path.write_bytes(buffer.getvalue())


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": storage.sha256_of(str(path))}
