"""What a partition costs: edges and remote rows across it, and how evenly it shares the work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.partition.book import PartitionBook


@dataclass(frozen=True)
class Cut:
    """Measures of a partitioned graph.

    Attributes:
        cut_edges: edges between two partitions.
        cut: their share of all edges.
        halo_rows: (partition, remote node with an edge into it) pairs.
        halo: halo rows / N.
        node_balance: nodes of the largest partition / their mean.
        edge_balance: row entries of the largest partition / their mean.
    """

    cut_edges: int
    cut: float
    halo_rows: int
    halo: float
    node_balance: float
    edge_balance: float


class CutCounter:
    """Adds up the measures while the partitions' rows pass by."""

    def __init__(self, book: PartitionBook) -> None:
        self._book = book
        self._cut_entries = 0
        self._halo_rows = 0
        self._entries: list[int] = []

    def add(self, part: int, indices: np.ndarray) -> None:
        """Take the rows of a partition: node ids, integer `[e]`."""
        start, _, end = self._book.offsets[part]
        self._cut_entries += int(((indices < start) | (indices >= end)).sum())
        seen = np.zeros(self._book.n_nodes, bool)
        seen[indices] = True
        seen[start:end] = False
        self._halo_rows += int(seen.sum())
        self._entries.append(len(indices))

    def result(self) -> Cut:
        """The measures, once every partition has passed."""
        book = self._book
        assert len(self._entries) == book.n_parts
        entries = max(sum(self._entries), 1)
        sizes = book.offsets[:, 2] - book.offsets[:, 0]
        return Cut(
            cut_edges=self._cut_entries // 2,
            cut=self._cut_entries / entries,
            halo_rows=self._halo_rows,
            halo=self._halo_rows / book.n_nodes,
            node_balance=float(sizes.max() * book.n_parts / book.n_nodes),
            edge_balance=max(self._entries) * book.n_parts / entries,
        )
