"""What a minibatch has reached, in the order in which it got there: nodes, or with cut-offs (node, cut-off) entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distgnn.kernels.nodes import describe_entries
from distgnn.kernels.relabel import append_distinct, append_distinct_entries
from distgnn.pages import zeros
from distgnn.sampler.store import Exclusion, TopologyStore

NO_CUTOFF = np.iinfo(np.int64).max


class Scratch:
    """A thread's arrays of N, and its table of entries; allocated once and never cleared."""

    def __init__(self, n_nodes: int) -> None:
        self.slot = zeros((n_nodes,), np.dtype(np.int64))
        self.nodes = np.empty(0, np.int64)
        self.epoch = 0
        self.excluded_row = np.full(n_nodes, -1, np.int32)
        self.column_head = np.full(n_nodes, -1, np.int32)
        self.entries = np.zeros(2, np.int64)
        self.entry_nodes, self.entry_cutoff = np.empty(0, np.int64), np.empty(0, np.int32)

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

    def reserve_entries(self, n: int, kept: int, epoch: int, seeds_before: np.ndarray) -> None:
        """Room for n entries of the minibatch, the first ones kept; a larger table takes up what they had.

        Args:
            seeds_before: see `append_distinct_entries`.
        """
        if len(self.entry_nodes) < n:
            room = max(n, 2 * len(self.entry_nodes))
            nodes, cutoff = np.empty(room, np.int64), np.empty(room, np.int32)
            nodes[:kept], cutoff[:kept] = self.entry_nodes[:kept], self.entry_cutoff[:kept]
            self.entry_nodes, self.entry_cutoff = nodes, cutoff
        if len(self.entries) < 2 * n:
            self.entries = np.zeros(1 << (2 * n - 1).bit_length(), np.int64)
            append_distinct_entries(
                self.entry_nodes[:kept],
                np.arange(kept + 1),
                self.entry_cutoff[:kept],
                seeds_before,
                self.entries,
                epoch,
                np.empty(kept, np.int64),
                np.empty(kept, np.int32),
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
            nodes: integer `[c]`; -1 is no node. cutoff: numbers of their cut-offs, integer `[c]`, or None.
            index: integer `[c]`, written: rows in the frontier, -1 for no node.
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
        cutoffs: the distinct ones, int64 `[C]`. n_seeds: how many seed edges, or seeds, have each, int64 `[C]`.
        leaf_degrees: whether to count the edges of entries that neighbours are drawn for nowhere.
    """

    def __init__(
        self, store: TopologyStore, scratch: Scratch, cutoffs: np.ndarray, n_seeds: np.ndarray, leaf_degrees: bool
    ) -> None:
        self.store, self.scratch, self.leaf_degrees = store, scratch, leaf_degrees
        self.cutoffs = cutoffs
        self.seeds_before = np.concatenate([[0], np.cumsum(n_seeds)])
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
        scratch.reserve_entries(self.n + len(nodes), self.n, self.epoch, self.seeds_before)
        self.n = append_distinct_entries(
            nodes,
            indptr,
            cutoff,
            self.seeds_before,
            scratch.entries,
            self.epoch,
            scratch.entry_nodes,
            scratch.entry_cutoff,
            self.n,
            index,
        )

    def draw(
        self, step: int, first: int, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Frontier`."""
        nodes, cutoff = self._entries(first)
        times = self.cutoffs[cutoff]
        indptr, neighbors, degree = self.store.draw_until(step, nodes, times, fanout, hop_key, exclusion)
        self.degree = np.concatenate([self.degree[:first], degree])
        indices = np.empty(len(neighbors), np.int32)
        self._append(neighbors, indptr, cutoff, indices)
        return indptr, indices

    def _entries(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and numbers of cut-offs from an entry on; they stay where they are when more are appended."""
        return self.scratch.entry_nodes[first : self.n], self.scratch.entry_cutoff[first : self.n]

    def finish(self, step: int, exclusion: Exclusion) -> Reached:
        """See `Frontier`; degrees count the edges up to the cut-off that are not excluded, -1 where nobody counts."""
        scratch = self.scratch
        nodes, number = self._entries(0)
        # One allocation, which is then large enough for the kernel's large pages: page by page, the first touch of a
        # minibatch's arrays would cost as much as drawing them.
        stable, degree, entry_row, cutoff = np.empty((4, self.n), np.int64)
        node_type = np.empty(self.n, np.uint8)
        topology = self.store.topology
        describe_entries(nodes, number, self.cutoffs, topology.offsets, topology.facts, node_type, stable, cutoff)
        n_drawn = len(self.degree)
        degree[:n_drawn] = self.degree
        if self.leaf_degrees:
            degree[n_drawn:] = self.store.degree_until(step, nodes[n_drawn:], cutoff[n_drawn:], exclusion)
        else:
            degree[n_drawn:] = -1
        distinct = scratch.reserve(min(self.n, len(scratch.slot)))
        n_nodes = append_distinct(nodes, scratch.slot, self.epoch, distinct, 0, entry_row)
        return Reached(distinct[:n_nodes].copy(), node_type, stable, degree, entry_row, cutoff)
