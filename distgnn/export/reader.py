"""Reading an export, wherever it is, with every file checked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import resources, storage
from distgnn.errors import read_failure
from distgnn.export.format import (
    DTYPES,
    FILES,
    FOLD_IN,
    FOLDER,
    FORMAT,
    FORMAT_VERSION,
    ITEMS,
    MANIFEST_KEYS,
    USERS,
    content_hash,
    schema,
)
from distgnn.export.table import Table
from distgnn.types import UserError

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Export:
    """All of an export in memory, by stable id.

    Attributes:
        uri: its folder. manifest: the content of manifest.json.
        users, items: vectors `[n_users, d]` and `[n_items, d]`.
        user_keys, item_keys: the log's keys, int64 or large_string.
        seen_indptr: int64 `[n_users + 1]`. seen_items: int32, the items of the training edges, ascending within a user.
        item_degree: training edges of every item, int64 `[n_items]`.
        fold_in: float32 `[d, d]`, see `distgnn.export.fold_in`.
    """

    uri: str
    manifest: dict[str, Any]
    users: Table
    items: Table
    user_keys: pa.Array
    item_keys: pa.Array
    seen_indptr: np.ndarray
    seen_items: np.ndarray
    item_degree: np.ndarray
    fold_in: np.ndarray


def read_export(path: str) -> Export:
    """Read the export of a run.

    Args:
        path: a run's directory, or the export's own folder; local or any fsspec URI (remote files are cached).

    Raises:
        UserError: no export there, or a missing, truncated, altered or foreign file, by name; too little memory.
    """
    uri = _find(path)
    manifest = _read_manifest(uri)
    files = {
        name: storage.checked_copy(storage.join(uri, name), manifest["files"][name], "export", "export the run again")
        for name in FILES
    }
    _refuse_too_large(uri, files, manifest)
    users = _RowReader(uri, files[USERS], USERS, manifest)
    items = _RowReader(uri, files[ITEMS], ITEMS, manifest)
    lengths = np.zeros(manifest["n_users"], np.int64)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for stable, batch in users:
        column = batch.column("seen")
        lengths[stable] = column.value_lengths().to_numpy()
        seen.append((stable, column.flatten().to_numpy()))
    degree = np.zeros(manifest["n_items"], np.int64)
    for stable, batch in items:
        degree[stable] = batch.column("degree").to_numpy()
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Export(
        uri=uri,
        manifest=manifest,
        users=users.table(),
        items=items.table(),
        user_keys=users.keys(),
        item_keys=items.keys(),
        seen_indptr=indptr,
        seen_items=_by_stable_id(indptr, seen, uri, manifest["n_items"]),
        item_degree=degree,
        fold_in=_read_fold_in(uri, files[FOLD_IN], manifest["dim"]),
    )


def _find(path: str) -> str:
    for uri in (path, storage.join(path, FOLDER)):
        if storage.exists(storage.join(uri, storage.MANIFEST)):
            return uri
    raise UserError(
        f"{path}: no export there (no {storage.MANIFEST} in it or in its {FOLDER}/; a training that was stopped leaves"
        " none); check run.path, or train to the end"
    )


def _read_manifest(uri: str) -> dict[str, Any]:
    place = storage.join(uri, storage.MANIFEST)
    manifest = storage.read_json(place)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{place}: not the manifest of an export; name a run's directory or its {FOLDER}/")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{place}: format version {manifest.get('format_version')}, this distgnn reads {FORMAT_VERSION}; "
            "export the run again"
        )
    if manifest.get("content_hash") != content_hash(manifest):
        raise UserError(f"{place}: altered, its content_hash is not its content's; export the run again")
    whole = all(key in manifest for key in MANIFEST_KEYS)
    if not whole or set(manifest["files"]) != set(FILES) or manifest["dtype"] not in DTYPES:
        raise UserError(f"{place}: does not describe an export's files; export the run again")
    return manifest


def _refuse_too_large(uri: str, files: dict[str, Path], manifest: dict[str, Any]) -> None:
    """Vectors as they are; keys, seen items and the rest twice while they are put in order."""
    row = manifest["dim"] * np.dtype(manifest["dtype"]).itemsize + 2 * (manifest["dtype"] == "int8")
    need = (manifest["n_users"] + manifest["n_items"]) * row
    for name in (USERS, ITEMS):
        with _parsing(uri, name):
            metadata = pq.read_metadata(files[name])
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            columns = [group.column(number) for number in range(group.num_columns)]
            need += 2 * sum(c.total_uncompressed_size for c in columns if not c.path_in_schema.startswith("vector"))
    free = resources.available_memory()
    if need > free:
        raise UserError(
            f"{uri}: needs {resources.gib(need)} of memory, {resources.gib(free)} is free; use a larger machine"
        )


@contextmanager
def _parsing(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _foreign(uri, name, error) from error


def _foreign(uri: str, name: str, why: str | Exception) -> UserError:
    place, said = storage.join(uri, name), f"not a file of an export ({why}); export the run again"
    return read_failure(place, why, said) if isinstance(why, Exception) else UserError(f"{place}: {said}")


class _RowReader:
    """Reads one of the two Parquet files; iterate once, then ask for what was collected."""

    def __init__(self, uri: str, path: Path, name: str, manifest: dict[str, Any]) -> None:
        self._uri, self._path, self._name = uri, path, name
        self._n = manifest["n_users" if name == USERS else "n_items"]
        self._dtype, self._dim = manifest["dtype"], manifest["dim"]
        self._values = np.empty((self._n, self._dim), self._dtype)
        self._scale = np.empty(self._n, np.float16) if self._dtype == "int8" else None
        self._stable: list[np.ndarray] = []
        self._keys: list[pa.Array] = []

    def __iter__(self) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """(stable ids int64 `[m]`, rows), with the vectors and keys put away."""
        with _parsing(self._uri, self._name), pq.ParquetFile(self._path) as file:
            self._check_schema(file.schema_arrow)
            for batch in file.iter_batches(_BATCH_ROWS):
                stable = batch.column("stable_id").to_numpy()
                if len(stable) and not (0 <= stable.min() and stable.max() < self._n):
                    raise _foreign(self._uri, self._name, f"a stable id is not below {self._n}")
                self._values[stable] = batch.column("vector").flatten().to_numpy().reshape(-1, self._dim)
                if self._scale is not None:
                    self._scale[stable] = batch.column("scale").to_numpy(zero_copy_only=False)
                self._stable.append(stable)
                self._keys.append(batch.column("key"))
                yield stable, batch
        if not np.array_equal(np.sort(self._all_stable()), np.arange(self._n)):
            raise _foreign(self._uri, self._name, f"does not hold each of {self._n} stable ids once")

    def _check_schema(self, there: pa.Schema) -> None:
        for key_type in (pa.int64(), pa.large_string()):
            if there.equals(schema(self._name, key_type, self._dtype, self._dim)):
                return
        raise _foreign(self._uri, self._name, f"its columns are {', '.join(there.names)}, of other names or types")

    def _all_stable(self) -> np.ndarray:
        return np.concatenate(self._stable) if self._stable else np.empty(0, np.int64)

    def table(self) -> Table:
        return Table(self._values, self._scale)

    def keys(self) -> pa.Array:
        keys = pa.concat_arrays(self._keys)
        stable = self._all_stable()
        if (np.diff(stable) == 1).all():
            return keys
        return keys.take(pa.array(np.argsort(stable)))


def _by_stable_id(indptr: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]], uri: str, n_items: int) -> np.ndarray:
    """Seen items of chunks (stable users, their items one after the other) as the values of a CSR, int32."""
    items = np.empty(indptr[-1], np.int32)
    for stable, values in parts:
        count = indptr[stable + 1] - indptr[stable]
        within = np.arange(len(values)) - np.repeat(np.cumsum(count) - count, count)
        items[np.repeat(indptr[stable], count) + within] = values
    if len(items) and not (0 <= items.min() and items.max() < n_items):
        raise _foreign(uri, USERS, f"a seen item is not below {n_items}")
    return items


def _read_fold_in(uri: str, path: Path, dim: int) -> np.ndarray:
    try:
        array = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _foreign(uri, FOLD_IN, error) from error
    if array.dtype != np.float32 or array.shape != (dim, dim):
        raise _foreign(uri, FOLD_IN, f"{array.dtype} {array.shape} instead of float32 ({dim}, {dim})")
    return array
