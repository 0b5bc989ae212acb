"""Feature tables into a dataset: one row a node by stable id, standardised over the nodes that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from distgnn import resources
from distgnn.data.features import FeatureTable
from distgnn.partition.dataset_files import DatasetWriter, FileArray, features_file, hash_of_json

Log = Callable[[str], None]
_CHUNK_VALUES = 1 << 21


def write_features(
    writer: DatasetWriter, tables: Mapping[str, FeatureTable], keys: Mapping[str, pa.Array], standardize: bool, log: Log
) -> dict[str, Any]:
    """Write `features/{users,items}.npy`, float32 `[n, f]` by stable id; zeros where a table has no row.

    Args:
        tables: by role, `user` and `item`. keys: by role, by stable id, ascending.

    Returns:
        By role what the manifest says of them.

    Raises:
        UserError: as `FeatureTable.locate` and `FeatureTable.batches`.
    """
    return {role: _write(writer, table, keys[role], standardize, log) for role, table in tables.items()}


def with_features(log_hash: str, features: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of the manifest: the hash of the data, and where there are features also what they add to it.

    Args:
        log_hash: of keys and edges. features: as `write_features` returns. files: those written, with their sha256.
    """
    if not features:
        return {"data_hash": log_hash}
    hashes = {role: files[features_file(role)]["sha256"] for role in features}
    return {"features": dict(features), "log_hash": log_hash, "data_hash": hash_of_json([log_hash, hashes])}


def feature_bytes(n: int, width: int) -> int:
    """Bytes of n rows."""
    return n * width * 4


def _write(writer: DatasetWriter, table: FeatureTable, keys: pa.Array, standardize: bool, log: Log) -> dict[str, Any]:
    located = table.locate(keys)
    n = len(keys)
    there = np.zeros(n, bool)
    there[located.stable[located.stable >= 0]] = True
    with writer.new_array(features_file(table.role), (n, table.width), np.float32) as file:
        at = 0
        for values in table.batches():
            stable = located.stable[at : at + len(values)]
            known = np.flatnonzero(stable >= 0)
            file.values[stable[known]] = values[known]
            file.forget()
            at += len(values)
        moments = _standardize(file, there) if standardize else None
    n_there = int(there.sum())
    log(
        f"{table.role} features: {len(table.columns)} columns, {table.width:,} values a row "
        f"({resources.gib(feature_bytes(n, table.width))}); {n_there:,} of {n:,} {table.role}s have a row, "
        f"{n - n_there:,} get zeros; {located.n_unknown:,} rows of unknown keys are left out"
    )
    return {
        "columns": [{"name": column.name, "width": column.width} for column in table.columns],
        "width": table.width,
        "rows": n_there,
        "mean": None if moments is None else moments[0].tolist(),
        "std": None if moments is None else moments[1].tolist(),
    }


def _standardize(file: FileArray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract each column's mean and divide by its standard deviation, in place; constant columns become 0.

    Sums go by stable id: they do not depend on the order of the table.

    Args:
        file: rows, float32 `[n, f]`. there: bool `[n]`: the rows that count; the others stay as they are.

    Returns:
        Mean and standard deviation (0 of a constant column), float64 `[f]`.
    """
    n, width = int(there.sum()), file.values.shape[1]
    total, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for _, values in _chunks(file, there):
        total += values.sum(0)
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    mean = total / n
    for _, values in _chunks(file, there):
        squares += np.square(values - mean).sum(0)
    std = np.where(low == high, 0.0, np.sqrt(squares / n))
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    for at, values in _chunks(file, there):
        file.values[at] = (values - mean) * scale
    return mean, std


def _chunks(file: FileArray, there: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and float64 values of the rows that count, a bounded number at a time."""
    step = max(1, _CHUNK_VALUES // file.values.shape[1])
    for start in range(0, len(there), step):
        at = start + np.flatnonzero(there[start : start + step])
        if len(at):
            yield at, file.values[at].astype(np.float64)
        file.forget()
