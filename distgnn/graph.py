"""In-memory or memory-mapped CSC topology of a partitioned interaction graph.

Nodes are users and items. A partition owns one contiguous range of node ids, its users first, then its items; the row
of a node lists its neighbours' node ids, ordered by the neighbours' stable ids, so that a position in a row means the
same edge at every number of partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distgnn.kernels.alias_tables import WORDS, build_tables
from distgnn.kernels.nodes import describe_nodes
from distgnn.timed_rows import TimedRows
from distgnn.types import USER, UserError

_NO_WEIGHT = np.empty(0, np.float32)


class Topology:
    """CSC in-edges of all partitions, or of those that a worker holds, read in place.

    Args:
        offsets: int64 `[P, 3]`, (user start, item start, end) of each partition's node ids.
        stable_id: integer `[N]`, node id -> stable id within its type.
        node_id: integer `[N]`, stable users' node ids, then stable items'.
        parts: P pairs of indptr int64 `[n_p + 1]` and indices int32 or int64 `[e_p]` (node ids); None for a partition
            that is not held, whose rows nobody may ask for here.
        user_offsets: int64 `[n_users + 1]`, cumulative degrees of the users in stable order: edge id e belongs to the
            user whose range holds it.
        degrees: integer `[N]`, of all nodes; needed where a partition is not held.
        times: for time-respecting sampling, the rows of every partition that is held, by time.
        weights: for sampling by weight, float32 `[e_p]` of every partition that is held; the alias tables are built
            here, in memory: see `table_bytes`.

    Attributes:
        refuse_change: raises a UserError where a file that arrays are mapped from is not what it was.

    Raises:
        UserError: a weight is negative or not finite.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        stable_id: np.ndarray,
        node_id: np.ndarray,
        parts: Sequence[tuple[np.ndarray, np.ndarray] | None],
        user_offsets: np.ndarray,
        degrees: np.ndarray | None = None,
        times: Sequence[TimedRows | None] | None = None,
        weights: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self.refuse_change: Callable[[], None] = lambda: None
        self.offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        self.stable_id = stable_id
        self.node_id = node_id
        self.user_offsets = user_offsets
        self.held = [p for p, part in enumerate(parts) if part is not None]
        assert self.held and (degrees is not None or len(self.held) == len(parts))
        # A memory map is passed on as a plain array: the kernels compile once for both.
        dtype = next(part[1].dtype for part in parts if part is not None)
        rows = [part or (np.empty(0, np.int64), np.empty(0, dtype)) for part in parts]
        self._indptr = [np.asarray(indptr).view(np.ndarray) for indptr, _ in rows]
        self._indices = [np.asarray(indices).view(np.ndarray) for _, indices in rows]
        self.n_users = len(user_offsets) - 1
        self.n_nodes = int(self.offsets[-1, 2])
        self.n_items = self.n_nodes - self.n_users
        self.n_parts = len(parts)
        self.n_edges = int(user_offsets[-1])
        self.indptr_address = np.array([a.ctypes.data for a in self._indptr], np.int64)
        self.indices_address = np.array([a.ctypes.data for a in self._indices], np.int64)
        self.like_indptr = np.empty(0, np.int64)
        self.like_indices = np.empty(0, self._indices[0].dtype)
        # What every kernel that reads rows takes, in this order.
        self.csc = (self.offsets, self.indptr_address, self.indices_address, self.like_indptr, self.like_indices)
        for indptr, indices in zip(self._indptr, self._indices, strict=True):
            assert indptr.dtype == np.int64 and indices.dtype == self.like_indices.dtype
            assert indptr.flags.c_contiguous and indices.flags.c_contiguous
        # Stable id and degree side by side, integer `[N, 2]`: what is known of a drawn node is one read from memory.
        self.facts = np.empty((self.n_nodes, 2), self.like_indices.dtype)
        self.facts[:, 0] = stable_id
        if degrees is None:
            for (start, _, end), indptr in zip(self.offsets, self._indptr, strict=True):
                self.facts[start:end, 1] = np.diff(indptr)
        else:
            self.facts[:, 1] = degrees
        self._times: list[TimedRows | None] = []
        self.has_times = times is not None
        if times is not None:
            self._map_times(times)
        self._weight: list[np.ndarray] = []
        self._tables: list[np.ndarray] = []
        self.has_weights = weights is not None
        if weights is not None:
            self._build_tables(weights)

    def _map_times(self, times: Sequence[TimedRows | None]) -> None:
        assert [p for p, rows in enumerate(times) if rows is not None] == self.held
        dtype = next(rows.time.dtype for rows in times if rows is not None)
        addresses = np.zeros((5, len(times)), np.int64)
        for p, rows in enumerate(times):
            mapped = None if rows is None else rows.as_plain_arrays()
            self._times.append(mapped)
            if mapped is not None:
                mapped.check(self._indices[p], dtype)
                addresses[:, p] = mapped.addresses()
        # What every kernel that reads times takes after `csc`, in this order.
        limits = np.iinfo(dtype)
        self.times = (*addresses, np.array([limits.min, limits.max], dtype))

    def _build_tables(self, weights: Sequence[np.ndarray | None]) -> None:
        assert [p for p, weight in enumerate(weights) if weight is not None] == self.held
        self._weight = [np.asarray(_NO_WEIGHT if w is None else w).view(np.ndarray) for w in weights]
        zeros = np.zeros(self.n_parts, np.bool_)
        entries, sums = [], []
        for p, (indptr, indices, weight) in enumerate(zip(self._indptr, self._indices, self._weight, strict=True)):
            assert weight.dtype == np.float32 and len(weight) == len(indices)
            _refuse_weights(weight)
            entries.append(np.empty(len(indices) * WORDS, indices.dtype))
            sums.append(np.empty(len(indices), np.int64))
            if len(indptr):
                zeros[p] = build_tables(indptr, indices, weight, entries[p], sums[p])
        self._tables = [*entries, *sums]
        # What `draw_rows_by_weight` takes after `csc`, in this order.
        self.weights = (
            np.array([a.ctypes.data for a in entries], np.int64),
            np.array([a.ctypes.data for a in sums], np.int64),
            zeros,
        )

    def drop_tables(self) -> None:
        """Let go of the tables for sampling by weight: nothing will be drawn any more."""
        self._tables = []
        self.has_weights = False

    @classmethod
    def from_edges(
        cls,
        user: np.ndarray,
        item: np.ndarray,
        n_users: int,
        n_items: int,
        timestamp: np.ndarray | None = None,
        weight: np.ndarray | None = None,
    ) -> Topology:
        """One partition whose node ids are the stable users, then n_users + the stable items.

        Args:
            user, item: stable ids of distinct edges, integer `[E]`. timestamp: int64 `[E]`, for time-respecting
                sampling. weight: float32 `[E]`, for sampling by weight.
        """
        user = np.asarray(user, np.int64)
        item = np.asarray(item, np.int64)
        n_nodes = n_users + n_items
        dtype = np.int32 if n_nodes < 2**31 else np.int64
        by_user = np.lexsort((item, user))
        by_item = np.lexsort((user, item))
        degree = np.concatenate([np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)])
        indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64)
        indices = np.concatenate([n_users + item[by_user], user[by_item]]).astype(dtype)
        stable = np.concatenate([np.arange(n_users), np.arange(n_items)]).astype(dtype)
        times = None
        if timestamp is not None:
            time = np.asarray(timestamp, np.int64)[np.concatenate([by_user, by_item])]
            times = [TimedRows.of(indptr, indices, time)]
        weights = None
        if weight is not None:
            weights = [np.asarray(weight, np.float32)[np.concatenate([by_user, by_item])]]
        return cls(
            np.array([[0, n_users, n_nodes]]),
            stable,
            np.arange(n_nodes, dtype=dtype),
            [(indptr, indices)],
            indptr[: n_users + 1].copy(),
            times=times,
            weights=weights,
        )

    def part_arrays(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """(indptr, indices) of one partition."""
        assert part in self.held, f"partition {part} is not held here"
        return self._indptr[part], self._indices[part]

    @property
    def holds_all(self) -> bool:
        """Whether the rows of all nodes are held."""
        return len(self.held) == self.n_parts

    def holds(self, nodes: np.ndarray) -> np.ndarray:
        """Whether the rows of nodes int64 `[n]` are held, bool `[n]`."""
        return np.isin(np.searchsorted(self.offsets[:, 2], nodes, side="right"), self.held)

    def row(self, node: int) -> np.ndarray:
        """Neighbours' node ids of one node, integer `[degree]`."""
        part = int(np.searchsorted(self.offsets[:, 0], node, side="right")) - 1
        row = node - self.offsets[part, 0]
        indptr, indices = self.part_arrays(part)
        return indices[indptr[row] : indptr[row + 1]]

    def consecutive_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """CSR of the rows of the node ids start .. stop: int64 `[stop - start + 1]`, neighbours' node ids."""
        counts, found = [np.zeros(1, np.int64)], [self.like_indices]
        for part in range(self.n_parts):
            low, high = max(start, self.offsets[part, 0]), min(stop, self.offsets[part, 2])
            if low < high:
                indptr, indices = self.part_arrays(part)
                bounds = indptr[low - self.offsets[part, 0] : high - self.offsets[part, 0] + 1]
                counts.append(np.diff(bounds))
                found.append(indices[bounds[0] : bounds[-1]])
        return np.cumsum(np.concatenate(counts)), np.concatenate(found)

    def row_times(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """Timestamps int64 `[degree]` of one node's row, and its positions by (timestamp, position)."""
        part = int(np.searchsorted(self.offsets[:, 0], node, side="right")) - 1
        row = node - self.offsets[part, 0]
        indptr, _ = self.part_arrays(part)
        rows = self._times[part]
        assert rows is not None
        span = slice(indptr[row], indptr[row + 1])
        place = rows.place[span]
        return rows.time[span][place].astype(np.int64), np.argsort(place)

    def row_by_time(self, node: int) -> np.ndarray:
        """Neighbours' node ids of one node by time, integer `[degree]`."""
        part = int(np.searchsorted(self.offsets[:, 0], node, side="right")) - 1
        rows = self._times[part]
        assert rows is not None
        indptr, _ = self.part_arrays(part)
        row = node - self.offsets[part, 0]
        return rows.neighbor[indptr[row] : indptr[row + 1]]

    def row_weights(self, node: int) -> np.ndarray:
        """Weights float32 `[degree]` of one node's row."""
        part = int(np.searchsorted(self.offsets[:, 0], node, side="right")) - 1
        row = node - self.offsets[part, 0]
        indptr, _ = self.part_arrays(part)
        return self._weight[part][indptr[row] : indptr[row + 1]]

    def describe(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Type uint8, stable id int64 and degree int64 of nodes int64 `[n]`."""
        node_type = np.empty(len(nodes), np.uint8)
        stable, degree = np.empty((2, len(nodes)), np.int64)
        describe_nodes(nodes, self.offsets, self.facts, node_type, stable, degree)
        return node_type, stable, degree

    def degree(self, nodes: np.ndarray) -> np.ndarray:
        """Degrees int64 of nodes int64 `[n]`."""
        return self.facts[nodes, 1].astype(np.int64)

    def neighbors(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 CSR of the neighbours' stable ids of nodes int64 `[n]`, in the nodes' order, ascending within a row."""
        degree = self.degree(nodes)
        offset = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64)
        stable = np.empty(offset[-1], np.int64)
        part = np.searchsorted(self.offsets[:, 0], nodes, side="right") - 1
        for p in np.unique(part):
            mine = np.flatnonzero(part == p)
            indptr, indices = self.part_arrays(int(p))
            count = degree[mine]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            entry = np.repeat(indptr[nodes[mine] - self.offsets[p, 0]], count) + within
            stable[np.repeat(offset[mine], count) + within] = self.stable_id[indices[entry]]
        return offset, stable

    def nbytes(self) -> int:
        """Bytes of the rows that are held, for memory statements."""
        timed = sum(rows.nbytes for rows in self._times if rows is not None)
        return timed + sum(a.nbytes for a in self._indptr + self._indices + self._weight)

    def table_bytes(self) -> int:
        """Bytes of the tables for sampling by weight, which are this process' own."""
        return sum(a.nbytes for a in self._tables)

    def validate(self) -> None:
        """Assert the invariants: contiguous ranges, inverse id maps, rows ordered by stable id, symmetric edges.

        Timestamps and weights are the same in both directions, and rows are ordered by timestamps.
        """
        assert self.offsets[0, 0] == 0 and (self.offsets[1:, 0] == self.offsets[:-1, 2]).all()
        node_type, stable, degree = self.describe(np.arange(self.n_nodes))
        users = np.flatnonzero(node_type == USER)
        items = np.flatnonzero(node_type != USER)
        assert (np.asarray(self.node_id)[stable[users]] == users).all()
        assert (np.asarray(self.node_id)[self.n_users + stable[items]] == items).all()
        assert (np.diff(self.user_offsets) == degree[np.asarray(self.node_id)[: self.n_users]]).all()
        forward: list[np.ndarray] = []
        backward: list[np.ndarray] = []
        for node in range(self.n_nodes):
            row = self.row(node)
            assert (node_type[row] != node_type[node]).all() and (np.diff(stable[row]) > 0).all()
            time = np.zeros(len(row), np.int64)
            if self.has_times:
                time, order = self.row_times(node)
                assert (order == np.lexsort((np.arange(len(row)), time))).all()
                assert (self.row_by_time(node) == row[order]).all()
            weight = self.row_weights(node) if self.has_weights else np.zeros(len(row), np.float32)
            pairs = np.stack([np.full(len(row), node), row, time, weight.view(np.int32)])
            (forward if node_type[node] == USER else backward).append(pairs)
        ahead = np.concatenate(forward, axis=1)
        back = np.concatenate(backward, axis=1)[[1, 0, 2, 3]]
        assert (ahead[:, np.lexsort(ahead)] == back[:, np.lexsort(back)]).all()


def _refuse_weights(weight: np.ndarray) -> None:
    least, most = (float(extreme(weight, initial=0.0)) for extreme in (np.min, np.max))  # NaN where one is
    if not (least >= 0 and most < np.inf):
        wrong = least if not least >= 0 else most
        raise UserError(
            f"sampler.weighted = true takes weights of at least 0, and an edge has {wrong:g}: prepare a log without"
            f" such weights (those of a repeated edge are summed), or set sampler.weighted = false"
        )
