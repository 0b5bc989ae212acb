"""What a minibatch has reached, in the order in which it got there: nodes, or with cut-offs (node, cut-off) entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distgnn.kernels.nodes import describe_nodes
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
        self.entries = np.zeros(2, np.int64)
        self.entry_nodes, self.entry_cutoff = np.empty((2, 0), np.int64)

    def next_epoch(self) -> int:
        """A stamp that no earlier minibatch has left."""
        if self.epoch == np.iinfo(np.int32).max:
            self.slot[:] = 0
            self.entries[:] = 0
            self.epoch = 0
        self.epoch += 1
        return self.epoch

    def reserve(self, n: int) -> np.ndarray:
        """Room for n nodes of the minibatch and one more, those that are there already kept."""
        if len(self.nodes) < n + 1:
            grown = np.empty(min(max(n, 2 * len(self.nodes)), len(self.slot)) + 1, np.int64)
            grown[: len(self.nodes)] = self.nodes
            self.nodes = grown
        return self.nodes

    def reserve_entries(self, n: int, kept: int, epoch: int) -> None:
        """Room for n entries of the minibatch, the first ones kept; a larger table takes up what they had."""
        if len(self.entry_nodes) < n:
            grown = np.empty((2, max(n, 2 * len(self.entry_nodes))), np.int64)
            grown[:, :kept] = self.entry_nodes[:kept], self.entry_cutoff[:kept]
            self.entry_nodes, self.entry_cutoff = grown
        if len(self.entries) < 2 * n:
            self.entries = np.zeros(1 << (2 * n - 1).bit_length(), np.int64)
            again, cutoffs = np.empty((2, kept), np.int64)
            append_distinct_entries(
                self.entry_nodes[:kept],
                np.arange(kept + 1),
                self.entry_cutoff[:kept],
                self.entries,
                epoch,
                again,
                cutoffs,
                0,
                np.empty(kept, np.int32),
            )


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
        store: draws the rows. scratch: this thread's, for this minibatch. weighted: whether it draws by weight.
    """

    def __init__(self, store: TopologyStore, scratch: Scratch, weighted: bool) -> None:
        self.store, self.scratch = store, scratch
        self.epoch = scratch.next_epoch()
        self.n = 0
        self._draw = store.draw_by_weight if weighted else store.draw

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
        indptr, neighbors = self._draw(step, self.scratch.nodes[first : self.n], fanout, hop_key, exclusion)
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
        self.n = 0
        self.degree = np.empty(0, np.int64)  # of the entries that neighbours were drawn for

    def __len__(self) -> int:
        return self.n

    def add(self, nodes: np.ndarray, cutoff: np.ndarray | None, index: np.ndarray) -> None:
        """See `Frontier`."""
        assert cutoff is not None
        self._append(nodes, np.arange(len(nodes) + 1), cutoff, index)

    def _append(self, nodes: np.ndarray, indptr: np.ndarray, cutoff: np.ndarray, index: np.ndarray) -> None:
        scratch = self.scratch
        scratch.reserve_entries(self.n + len(nodes), self.n, self.epoch)
        room = (scratch.entry_nodes, scratch.entry_cutoff)
        self.n = append_distinct_entries(nodes, indptr, cutoff, scratch.entries, self.epoch, *room, self.n, index)

    def draw(
        self, step: int, first: int, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Frontier`."""
        nodes, cutoff = self._entries(first)
        indptr, neighbors, degree = self.store.draw_until(step, nodes, cutoff, fanout, hop_key, exclusion)
        self.degree = np.concatenate([self.degree[:first], degree])
        indices = np.empty(len(neighbors), np.int32)
        self._append(neighbors, indptr, cutoff, indices)
        return indptr, indices

    def _entries(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and cut-offs from an entry on; they stay where they are when more are appended."""
        return self.scratch.entry_nodes[first : self.n], self.scratch.entry_cutoff[first : self.n]

    def finish(self, step: int, exclusion: Exclusion) -> Reached:
        """See `Frontier`; degrees count the edges up to the cut-off that are not excluded."""
        scratch = self.scratch
        nodes, kept_cutoff = self._entries(0)
        # One allocation, which is then large enough for the kernel's large pages: page by page, the first touch of a
        # minibatch's arrays would cost as much as drawing them.
        stable, degree, entry_row, cutoff, full_degree = np.empty((5, self.n), np.int64)
        node_type = np.empty(self.n, np.uint8)
        n_drawn = len(self.degree)
        degree[:n_drawn] = self.degree
        degree[n_drawn:] = self.store.degree_until(step, *self._entries(n_drawn), exclusion)
        topology = self.store.topology
        describe_nodes(nodes, topology.offsets, topology.facts, node_type, stable, full_degree)
        cutoff[:] = kept_cutoff
        distinct = scratch.reserve(min(self.n, len(scratch.slot)))
        n_nodes = append_distinct(nodes, scratch.slot, self.epoch, distinct, 0, entry_row)
        return Reached(distinct[:n_nodes].copy(), node_type, stable, degree, entry_row, cutoff)
