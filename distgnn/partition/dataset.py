"""Reading a prepared dataset, wherever it is, with every file checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.errors import read_failure
from distgnn.graph import Topology
from distgnn.kernels.alias_tables import WORDS
from distgnn.kernels.edges import find_in_rows
from distgnn.partition.book import PartitionBook, id_dtype
from distgnn.partition.dataset_files import (
    FORMAT,
    FORMAT_VERSION,
    PHASES,
    SPLITS,
    book_file,
    content_hash,
    edges_file,
    features_file,
    part_file,
    partitioning_name,
    user_offsets_file,
)
from distgnn.partition.files_in_use import FilesInUse
from distgnn.timed_rows import TIMED_ARRAYS, TimedRows
from distgnn.types import UserError


class PreparedDataset:
    """A prepared dataset. Build it with `PreparedDataset.open`.

    Attributes:
        path: where it is, a local path or any fsspec URI.
        manifest: the content of manifest.json.
        name: of the dataset.
        n_users: users known to it, with and without edges.
        n_items: items known to it: the catalogue.
        n_fit: training edges without validation.
        n_valid: validation edges.
        n_test: test edges.
        n_train: fit and validation edges.
        content_hash: of the data in stable ids, the configuration and the partitionings.
        data_hash: of keys, edges and features in stable ids alone: the same for every partitioning of the same data.
        in_use: its files that were checked or opened.
    """

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        counts = manifest["counts"]
        self.name: str = manifest["name"]
        self.n_users: int = counts["n_users"]
        self.n_items: int = counts["n_items"]
        self.n_fit: int = counts["n_fit"]
        self.n_valid: int = counts["n_valid"]
        self.n_test: int = counts["n_test"]
        self.n_train: int = counts["n_train"]
        self.content_hash: str = manifest["content_hash"]
        self.data_hash: str = manifest["data_hash"]
        self.in_use = FilesInUse()

    @classmethod
    def open(cls, path: str, verify: bool = True) -> PreparedDataset:
        """Open a dataset.

        Args:
            path: local path or any fsspec URI.
            verify: check size and hash of every file (those of a remote dataset are fetched into the cache), and that
                no graph holds an edge that it must not see. Without it only the manifest is read.

        Raises:
            UserError: no dataset there, or a missing, truncated or altered file, by name; a leak.
        """
        dataset = cls(path, _read_manifest(path))
        if verify:
            dataset.verify()
            check_no_leak(dataset)
        return dataset

    def counts(self) -> dict[str, Any]:
        """Name and counts, as reports hold them."""
        return {
            "name": self.name,
            "n_users": self.n_users,
            "n_items": self.n_items,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }

    def verify(self) -> None:
        """Check size and SHA-256 of every file.

        Raises:
            UserError: naming the first file that is missing, truncated or altered.
        """
        self.remember()  # as they are before they are read
        for file, facts in self.manifest["files"].items():
            uri = storage.join(self.path, file)
            self.in_use.note(storage.checked_copy(uri, facts, "dataset", "prepare it again"), uri, facts)

    def remember(self) -> None:
        """Note its local files as they are now, to see later whether they change."""
        if storage.is_local(self.path):
            for file, facts in self.manifest["files"].items():
                uri = storage.join(self.path, file)
                self.in_use.note(storage.local_path(uri), uri, facts)

    def local_file(self, file: str) -> Path:
        """A local copy of one of the dataset's files.

        Raises:
            UserError: missing from the manifest or from the dataset.
        """
        uri = storage.join(self.path, file)
        facts = self.manifest["files"].get(file)
        if facts is None:
            raise UserError(f"{uri}: missing from the dataset's manifest; prepare it again")
        path = storage.local_copy(uri, facts["sha256"])
        self.in_use.note(path, uri, facts)
        return path

    def array(self, file: str) -> np.ndarray:
        """One of the dataset's arrays, memory-mapped read-only."""
        path = self.local_file(file)
        size, expected = path.stat().st_size, self.manifest["files"][file]["bytes"]
        if size != expected:  # a worker that maps it has not read it whole
            raise UserError(
                f"{storage.join(self.path, file)}: damaged: it has {size} bytes instead of {expected}; prepare it again"
            )
        try:
            return _map_array(path)
        except (OSError, ValueError, EOFError) as error:
            raise self._unreadable(file, error) from error

    def partitionings(self) -> list[str]:
        """Names (`metis-8`) of the partitionings that the dataset has."""
        return sorted(self.manifest["partitions"])

    def partitioning(self, method: str, parts: int) -> str:
        """Name of the partitioning for a method and a number of partitions.

        Where METIS did not fit and `random` took its place, that one.

        Raises:
            UserError: the dataset has none; the message says which there are and how to make it.
        """
        partitions = self.manifest["partitions"]
        wanted = partitioning_name(method, parts)
        if wanted in partitions:
            return wanted
        for name, facts in partitions.items():
            if facts["parts"] == parts and facts["requested"] == method:
                return name
        raise UserError(
            f"{self.path}: no partitioning {wanted}, only {', '.join(self.partitionings())}; make a dataset with it by:"
            f" distgnn prepare --set data.path={self.path} --set partition.method={method}"
            f" --set partition.parts={parts} --set run.out=NEW_FOLDER"
        )

    def book(self, method: str, parts: int) -> PartitionBook:
        """The partition book of a partitioning."""
        name = self.partitioning(method, parts)
        offsets, stable_id, node_id = (self.array(book_file(name, a)) for a in ("offsets", "stable_id", "node_id"))
        return PartitionBook(offsets, stable_id, node_id)

    @property
    def has_timestamps(self) -> bool:
        """Whether the edges have them."""
        return "timestamp" in self.manifest["columns"]

    @property
    def has_weights(self) -> bool:
        """Whether the edges have them."""
        return "weight" in self.manifest["columns"]

    @property
    def split(self) -> str:
        """given, leave_last_k, per_user_ratio or global_time."""
        return str(self.manifest["config"]["split"])

    def topology(
        self,
        phase: str,
        method: str,
        parts: int,
        held: range | None = None,
        times: bool = False,
        weights: bool = False,
    ) -> Topology:
        """The graph of a phase (`fit`: training without validation edges; `full`: both), memory-mapped.

        Args:
            held: the partitions whose files are opened (of a remote dataset: fetched); None: all.
            times: with the rows by time, for time-respecting sampling.
            weights: with the tables for sampling by weight, built in memory.

        Raises:
            UserError: no such partitioning; no timestamps, or prepared before rows were written by time; no weights, or
                one that is negative.
        """
        assert phase in PHASES
        name = self.partitioning(method, parts)
        book = self.book(method, parts)
        user_offsets = self.array(user_offsets_file(name, phase))
        if times:
            self._require_times(part_file(name, phase, 0, TIMED_ARRAYS["place"]))
        if weights and not self.has_weights:
            raise UserError(
                f"{self.path}: no weights, and sampler.weighted = true goes by them; prepare the log with"
                f" data.weight_column, or leave sampler.weighted out"
            )

        def array_of(part: int, array: str) -> np.ndarray:
            return self.array(part_file(name, phase, part, array))

        kept = [p if held is None or p in held else None for p in range(parts)]
        rows = [None if p is None else (array_of(p, "indptr"), array_of(p, "indices")) for p in kept]
        dated = None
        if times:
            dated = [None if p is None else TimedRows(*(array_of(p, a) for a in TIMED_ARRAYS.values())) for p in kept]
        weight = [None if p is None else array_of(p, "weight") for p in kept] if weights else None
        degrees = None if None not in rows else self._degrees_by_node(book, phase, user_offsets)
        topology = Topology(book.offsets, book.stable_id, book.node_id, rows, user_offsets, degrees, dated, weight)
        topology.refuse_change = self.in_use.refuse_change
        return topology

    def _require_times(self, file: str) -> None:
        if not self.has_timestamps:
            raise UserError(
                f"{self.path}: no timestamps, and sampler.time_respecting = true goes by them; prepare the log with"
                f" data.timestamp_column, or leave sampler.time_respecting out"
            )
        if file not in self.manifest["files"]:
            raise UserError(
                f"{self.path}: prepared before rows were written by time ({file} is missing); prepare it again, or set"
                f" sampler.time_respecting = false"
            )

    def topology_bytes(self, phase: str, method: str, parts: int, times: bool = False, weights: bool = False) -> int:
        """Bytes of the rows of all partitions, as `topology` maps them."""
        arrays = ("indptr", "indices", *(TIMED_ARRAYS.values() if times else ()), *(("weight",) * weights))
        return self._part_bytes(phase, method, parts, range(parts), arrays)

    def _part_bytes(self, phase: str, method: str, parts: int, which: range, arrays: Sequence[str]) -> int:
        """Bytes of the files of partitions."""
        name = self.partitioning(method, parts)
        files = [part_file(name, phase, p, array) for p in which for array in arrays]
        return sum(int(self.manifest["files"][file]["bytes"]) for file in files if file in self.manifest["files"])

    def weight_table_bytes(self, phase: str, method: str, parts: int, held: range) -> int:
        """Bytes of the tables for sampling by weight of these partitions, in memory (`Topology.table_bytes`)."""
        return self._part_bytes(phase, method, parts, held, ("indices",)) * WORDS + 2 * self._part_bytes(
            phase, method, parts, held, ("weight",)
        )

    def _degrees_by_node(self, book: PartitionBook, phase: str, user_offsets: np.ndarray) -> np.ndarray:
        """Degrees of all nodes, integer `[N]`, without any row."""
        degrees = np.empty(book.n_nodes, id_dtype(int(user_offsets[-1])))
        degrees[book.node_id[: self.n_users]] = np.diff(user_offsets)
        degrees[book.node_id[self.n_users :]] = self.item_degree(phase)
        return degrees

    def feature_widths(self) -> dict[str, int]:
        """Values in a row of features, by role: `user`, `item`; without those that the dataset has no features of."""
        return {role: facts["width"] for role, facts in self.manifest.get("features", {}).items()}

    def features(self) -> dict[str, np.ndarray]:
        """Features by role, float32 `[n, f]` by stable id, memory-mapped; zeros where nothing is known of a node."""
        return {role: self.array(features_file(role)) for role in self.feature_widths()}

    def edges(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Stable users and items, int64 `[n]` each, of `train` (the fit edges), `valid` or `test`, by (user, item)."""
        table = self.edge_table(split, ["user", "item"])
        return table["user"].to_numpy(), table["item"].to_numpy()

    def edge_table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """Columns of a split's edges: user, item[, timestamp][, weight]; all of them by default."""
        assert split in SPLITS
        return self._table(edges_file(split), columns)

    def user_table(self) -> pa.Table:
        """stable_id, key, degree (full), degree_fit, and the source's own columns, by stable id."""
        return self._table("users.parquet")

    def item_table(self) -> pa.Table:
        """As `user_table`."""
        return self._table("items.parquet")

    def user_keys(self) -> pa.Array:
        """The log's user keys, int64 or large_string `[n_users]`, by stable id."""
        return _one_chunk(self._table("users.parquet", ["key"])["key"])

    def item_keys(self) -> pa.Array:
        """The log's item keys, int64 or large_string `[n_items]`, by stable id."""
        return _one_chunk(self._table("items.parquet", ["key"])["key"])

    def user_degree(self, phase: str) -> np.ndarray:
        """Degrees of the stable users in a phase's graph, int64 `[n_users]`."""
        return self._degree("users.parquet", phase)

    def item_degree(self, phase: str) -> np.ndarray:
        """Degrees of the stable items in a phase's graph, int64 `[n_items]`."""
        return self._degree("items.parquet", phase)

    def _degree(self, file: str, phase: str) -> np.ndarray:
        assert phase in PHASES
        column = "degree" if phase == "full" else "degree_fit"
        return self._table(file, [column])[column].to_numpy()

    def _table(self, file: str, columns: list[str] | None = None) -> pa.Table:
        path = self.local_file(file)
        try:
            return pq.read_table(path, columns=columns, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: str, error: Exception) -> UserError:
        """A file can be sound, and memory too short to read or map it."""
        return read_failure(storage.join(self.path, file), error, f"damaged ({error}); prepare it again")


def is_prepared(path: str) -> bool:
    """Whether a prepared dataset is at a path."""
    return storage.exists(storage.join(path, storage.MANIFEST))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _map_array(path: Path) -> np.ndarray:
    with open(path, "rb") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if 0 in shape:  # nothing to map
        return np.empty(shape, dtype)
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _read_manifest(path: str) -> dict[str, Any]:
    uri = storage.join(path, storage.MANIFEST)
    if not storage.exists(uri):
        raise UserError(
            f"{path}: no prepared dataset there (no {storage.MANIFEST}; a prepare that was stopped leaves none);"
            f" check data.path or prepare it"
        )
    manifest = storage.read_json(uri)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{uri}: not the manifest of a prepared dataset; check data.path")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{uri}: format version {manifest.get('format_version')}, this distgnn reads {FORMAT_VERSION};"
            f" prepare the dataset again"
        )
    try:
        intact = content_hash(manifest) == manifest["content_hash"]
    except (KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise UserError(f"{uri}: altered, its content_hash is not its content's; prepare the dataset again")
    return manifest


def check_no_leak(dataset: PreparedDataset) -> None:
    """No `fit` graph holds a validation or test edge, no `full` graph a test edge, in either direction.

    Raises:
        UserError: naming the partitioning, the phase and an edge.
    """
    for name, facts in dataset.manifest["partitions"].items():
        for phase, hidden in (("fit", ("valid", "test")), ("full", ("test",))):
            topology = dataset.topology(phase, facts["method"], facts["parts"])
            for split in hidden:
                _refuse_leak(dataset, topology, f"{dataset.path}/partitions/{name}/{phase}", split)


def _refuse_leak(dataset: PreparedDataset, topology: Topology, where: str, split: str) -> None:
    user, item = dataset.edges(split)
    user_node = topology.node_id[user].astype(np.int64)
    item_node = topology.node_id[dataset.n_users + item].astype(np.int64)
    for node, wanted in ((user_node, item), (item_node, user)):
        leaked = np.flatnonzero(_holds(topology, node, wanted))
        if len(leaked):
            edge = int(leaked[0])
            raise UserError(
                f"{where}: holds {len(leaked)} of the {split} edges, among them user {user[edge]}, item {item[edge]}"
                f" (stable ids): the graph would see what it is judged by; prepare the dataset again"
            )


def _holds(topology: Topology, node: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether rows hold neighbours: node int64 `[q]`, stable ids int64 `[q]` -> bool `[q]`."""
    result = np.zeros(len(node), bool)
    starts = topology.offsets[:, 0]
    for part in range(topology.n_parts):
        start, _, end = topology.offsets[part]
        mine = np.flatnonzero((node >= start) & (node < end))
        found = np.empty(len(mine), bool)
        indptr, indices = topology.part_arrays(part)
        find_in_rows(node[mine] - starts[part], wanted[mine], indptr, indices, topology.stable_id, found)
        result[mine] = found
    return result
