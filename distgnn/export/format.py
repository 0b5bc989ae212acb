"""Names and shape of an export's files, read by `reader` and written by `writer`.

EXPORT/manifest.json   model, dataset, phase, counts, width and dtype of the vectors; size and hash of every file; last
EXPORT/users.parquet   stable_id, key, vector[, scale], seen
EXPORT/items.parquet   stable_id, key, vector[, scale], degree
EXPORT/fold_in.npy     float32 [d, d], from a history to a user vector
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT = "distgnn-export"
FORMAT_VERSION = 1
FOLDER = "embeddings"  # of a run's directory
USERS, ITEMS, FOLD_IN = "users.parquet", "items.parquet", "fold_in.npy"
FILES = (USERS, ITEMS, FOLD_IN)
MANIFEST_KEYS = ("model", "phase", "dataset", "dataset_hash", "dtype", "dim", "n_users", "n_items", "files")
_ARROW = {"float32": pa.float32(), "float64": pa.float64(), "int8": pa.int8()}
DTYPES = tuple(_ARROW)


def content_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content but for the hash itself, whatever the order of its keys."""
    rest = {key: value for key, value in manifest.items() if key != "content_hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def schema(file: str, key_type: pa.DataType, dtype: str, dim: int) -> pa.Schema:
    """Columns of USERS or ITEMS, for keys of a type and vectors of a dtype (one of DTYPES) and width."""
    columns = {"stable_id": pa.int64(), "key": key_type, "vector": pa.list_(_ARROW[dtype], dim)}
    if dtype == "int8":
        columns["scale"] = pa.float16()
    if file == USERS:
        columns["seen"] = pa.list_(pa.int32())
    else:
        columns["degree"] = pa.int64()
    return pa.schema(columns)


def dtype_of(values: np.ndarray) -> str:
    """The name of a table's dtype.

    Raises:
        ValueError: not one of DTYPES.
    """
    if values.dtype.name not in DTYPES:
        raise ValueError(f"vectors of dtype {values.dtype} cannot be exported, only {', '.join(DTYPES)}")
    return values.dtype.name
