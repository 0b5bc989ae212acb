"""Small random graphs, whole or cut into partitions."""

from __future__ import annotations

import numpy as np

from distgnn.data.interactions import Interactions
from distgnn.graph import Topology
from distgnn.partition.book import PartitionBook, relabel
from distgnn.partition.stable_graph import StableGraph


def random_edges(seed: int, n_users: int, n_items: int, n_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item), ordered, with popular items and nodes without an edge."""
    rng = np.random.default_rng(seed)
    item = (n_items * rng.random(n_edges) ** 2).astype(np.int64)
    edges = np.unique(rng.integers(0, n_users, n_edges) * n_items + item)
    return edges // n_items, edges % n_items


def partitioned(
    user: np.ndarray,
    item: np.ndarray,
    n_users: int,
    n_items: int,
    n_parts: int,
    timestamp: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> tuple[Topology, PartitionBook]:
    """The graph under a random partition."""
    part = np.random.default_rng(n_parts).integers(0, n_parts, n_users + n_items)
    book = relabel(part, n_users, n_parts)
    graph = StableGraph.build(Interactions(user, item, timestamp, weight), n_users, n_items)
    rows = [graph.rows_of(book, p) for p in range(n_parts)]
    parts = [(r.indptr, r.indices) for r in rows]
    times = None if timestamp is None else [r.times for r in rows]
    weights = None if weight is None else [r.weight for r in rows]
    ids = (book.offsets, book.stable_id, book.node_id)
    return Topology(*ids, parts, graph.user_offsets, times=times, weights=weights), book
