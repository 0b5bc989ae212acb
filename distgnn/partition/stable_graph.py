"""A graph in stable ids, both directions, and the rows of one partition of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.data.interactions import Interactions, group_order
from distgnn.kernels.edges import gather_rows
from distgnn.partition.book import PartitionBook
from distgnn.timed_rows import TimedRows, time_dtype


@dataclass(frozen=True)
class PartRows:
    """CSC of one partition.

    Attributes:
        indptr: int64 `[n + 1]`.
        indices: node ids, int32 or int64 `[e]`, ordered within a row by the neighbour's stable id.
        times: the rows by time, or None where edges have no timestamps.
        weight: float32 `[e]`, or None.
    """

    indptr: np.ndarray
    indices: np.ndarray
    times: TimedRows | None
    weight: np.ndarray | None


@dataclass(frozen=True)
class StableGraph:
    """Distinct edges with offsets of both directions; an edge id is a rank by (user, item).

    Attributes:
        edges: ordered by (user, item), `[E]`.
        user_offsets: int64 `[n_users + 1]`.
        item_offsets: int64 `[n_items + 1]`.
        by_item: edge ids ordered by (item, user), integer `[E]`.
    """

    edges: Interactions
    user_offsets: np.ndarray
    item_offsets: np.ndarray
    by_item: np.ndarray

    @classmethod
    def build(cls, edges: Interactions, n_users: int, n_items: int) -> StableGraph:
        """Index edges that are ordered by (user, item)."""
        user_offsets = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(edges.user, minlength=n_users), out=user_offsets[1:])
        item_offsets, by_item = group_order(edges.item, n_items)
        return cls(edges, user_offsets, item_offsets, by_item)

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_offsets) - 1

    @property
    def n_nodes(self) -> int:
        """Number of users and items."""
        return self.n_users + len(self.item_offsets) - 1

    def degree(self) -> np.ndarray:
        """Degrees of the stable users, then of the stable items, int64 `[N]`."""
        return np.concatenate([np.diff(self.user_offsets), np.diff(self.item_offsets)])

    def rows_of(self, book: PartitionBook, part: int) -> PartRows:
        """The rows of one partition, in node ids."""
        start, item_start, end = book.offsets[part]
        nodes = book.stable_id[start:end].astype(np.int64)
        nodes[item_start - start :] += self.n_users
        indptr = np.zeros(len(nodes) + 1, np.int64)
        np.cumsum(self.degree()[nodes], out=indptr[1:])
        indices = np.empty(indptr[-1], book.node_id.dtype)
        edges = self.edges
        with_columns = edges.timestamp is not None or edges.weight is not None
        edge = np.empty(indptr[-1] if with_columns else 0, np.int64)
        gather_rows(
            nodes,
            self.n_users,
            self.user_offsets,
            self.item_offsets,
            self.by_item,
            edges.user,
            edges.item,
            book.node_id,
            indices,
            edge,
        )
        weight = None if edges.weight is None else edges.weight[edge]
        if edges.timestamp is None:
            return PartRows(indptr, indices, None, weight)
        timestamp = edges.timestamp[edge]
        del edge  # as large as the timestamps
        return PartRows(indptr, indices, TimedRows.of(indptr, indices, timestamp, time_dtype(edges.timestamp)), weight)
