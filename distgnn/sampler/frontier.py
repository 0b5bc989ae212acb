"""What a minibatch has reached, in the order in which it got there: nodes, or with cut-offs (node, cut-off) entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distgnn.kernels.relabel import append_distinct, append_distinct_entries
from distgnn.sampler.store import Exclusion, TopologyStore

NO_CUTOFF = np.iinfo(np.int64).max


class Scratch:
    """A thread's arrays of N, and its table of entries; allocated once and never cleared."""

    def __init__(self, n_nodes: int) -> None:
        self.slot = np.zeros(n_nodes, np.int64)
        self.nodes = np.empty(0, np.int64)
        self.epoch = 0
        self.excluded_row = np.full(n_nodes, -1, np.int32)
        self.column_head = np.full(n_nodes, -1, np.int32)
        self.entries = np.zeros((2, 2), np.int32)

    def next_epoch(self) -> int:
        """A stamp that no earlier minibatch has left."""
        if self.epoch == np.iinfo(np.int32).max:
            self.slot[:] = 0
            self.entries[:] = 0
            self.epoch = 0
        self.epoch += 1
        return self.epoch

    def reserve(self, n: int) -> np.ndarray:
        """Room for n nodes of the minibatch, those that are there already kept."""
        if len(self.nodes) < n:
            grown = np.empty(min(max(n, 2 * len(self.nodes)), len(self.slot)), np.int64)
            grown[: len(self.nodes)] = self.nodes
            self.nodes = grown
        return self.nodes


@dataclass(frozen=True, slots=True)
class Reached:
    """Everything that a minibatch has reached.

    Attributes:
        nodes: distinct node ids, int64.
        node_type, stable_id, degree: of the entries, uint8, int64, int64 `[F_L]`.
        entry_row, cutoff: of the entries, as in `distgnn.types.MiniBatch`, or None.
    """

    nodes: np.ndarray
    node_type: np.ndarray
    stable_id: np.ndarray
    degree: np.ndarray
    entry_row: np.ndarray | None = None
    cutoff: np.ndarray | None = None


class Frontier(Protocol):
    """The cumulative frontier of one minibatch; `len` gives its size."""

    def __len__(self) -> int: ...

    def add(self, nodes: np.ndarray, cutoff: np.ndarray | None, index: np.ndarray) -> None:
        """Append what is new, in order.

        Args:
            nodes: integer `[c]`; -1 is no node. cutoff: int64 `[c]`, or None. index: integer `[c]`, written: rows in
                the frontier, -1 for no node.
        """

    def draw(
        self, step: int, first: int, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw neighbours for the frontier from row `first` on, and append them.

        Returns:
            int64 `[n + 1]` and the rows of the drawn, int32.
        """

    def finish(self, step: int, exclusion: Exclusion) -> Reached:
        """What was reached. Where the store may wait: a collective."""


class NodeFrontier:
    """Distinct nodes.

    Args:
        store: draws the rows. scratch: this thread's, for this minibatch.
    """

    def __init__(self, store: TopologyStore, scratch: Scratch) -> None:
        self.store, self.scratch = store, scratch
        self.epoch = scratch.next_epoch()
        self.n = 0

    def __len__(self) -> int:
        return self.n

    def add(self, nodes: np.ndarray, cutoff: np.ndarray | None, index: np.ndarray) -> None:
        """See `Frontier`."""
        scratch = self.scratch
        room = scratch.reserve(min(self.n + len(nodes), len(scratch.slot)))
        self.n = append_distinct(nodes, scratch.slot, self.epoch, room, self.n, index)

    def draw(
        self, step: int, first: int, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Frontier`."""
        indptr, neighbors = self.store.draw(step, self.scratch.nodes[first : self.n], fanout, hop_key, exclusion)
        indices = np.empty(len(neighbors), np.int32)
        self.add(neighbors, None, indices)
        return indptr, indices

    def finish(self, step: int, exclusion: Exclusion) -> Reached:
        """See `Frontier`; degrees are full training degrees."""
        nodes = self.scratch.nodes[: self.n].copy()
        return Reached(nodes, *self.store.topology.describe(nodes))


class EntryFrontier:
    """Distinct (node, cut-off). A drawn neighbour has the cut-off of the entry that it was drawn for.

    Args:
        store: draws the rows; its topology has times. scratch: this thread's, for this minibatch.
    """

    def __init__(self, store: TopologyStore, scratch: Scratch) -> None:
        self.store, self.scratch = store, scratch
        self.epoch = scratch.next_epoch()
        self.nodes = np.empty(0, np.int64)
        self.cutoff = np.empty(0, np.int64)
        self.degree = np.empty(0, np.int64)  # of the entries that neighbours were drawn for

    def __len__(self) -> int:
        return len(self.nodes)

    def add(self, nodes: np.ndarray, cutoff: np.ndarray | None, index: np.ndarray) -> None:
        """See `Frontier`."""
        assert cutoff is not None
        scratch, n = self.scratch, len(self.nodes)
        self._reserve(n + len(nodes))
        room, cutoffs = np.empty((2, n + len(nodes)), np.int64)
        room[:n], cutoffs[:n] = self.nodes, self.cutoff
        n = append_distinct_entries(nodes, cutoff, scratch.entries, self.epoch, room, cutoffs, n, index)
        self.nodes, self.cutoff = room[:n], cutoffs[:n]

    def _reserve(self, n_entries: int) -> None:
        """Make the table large enough; a larger one takes up what the old one holds of this minibatch."""
        if len(self.scratch.entries) >= 2 * n_entries:
            return
        table = self.scratch.entries = np.zeros((1 << (2 * n_entries - 1).bit_length(), 2), np.int32)
        n = len(self.nodes)
        again, cutoffs = np.empty((2, n), np.int64)
        index = np.empty(n, np.int32)
        append_distinct_entries(self.nodes, self.cutoff, table, self.epoch, again, cutoffs, 0, index)

    def draw(
        self, step: int, first: int, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Frontier`."""
        cutoff = self.cutoff[first:]
        indptr, neighbors, degree = self.store.draw_until(step, self.nodes[first:], cutoff, fanout, hop_key, exclusion)
        self.degree = np.concatenate([self.degree[:first], degree])
        indices = np.empty(len(neighbors), np.int32)
        self.add(neighbors, np.repeat(cutoff, np.diff(indptr)), indices)
        return indptr, indices

    def finish(self, step: int, exclusion: Exclusion) -> Reached:
        """See `Frontier`; degrees count the edges up to the cut-off that are not excluded."""
        n, scratch = len(self.degree), self.scratch
        last = self.store.degree_until(step, self.nodes[n:], self.cutoff[n:], exclusion)
        node_type, stable, _ = self.store.topology.describe(self.nodes)
        distinct = np.empty(min(len(self.nodes), len(scratch.slot)), np.int64)
        entry_row = np.empty(len(self.nodes), np.int64)
        n_nodes = append_distinct(self.nodes, scratch.slot, self.epoch, distinct, 0, entry_row)
        degree = np.concatenate([self.degree, last])
        return Reached(distinct[:n_nodes], node_type, stable, degree, entry_row, self.cutoff)
