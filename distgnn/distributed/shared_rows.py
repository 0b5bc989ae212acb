"""Embedding rows in memory that all workers of a host map: nobody sends rows, who wants some reads them.

A worker moves its own rows alone. It finds the gradients of the others in their outboxes. Two meetings a step keep
reading and moving apart: before rows are read everybody has moved those of the last step, and before they are moved
everybody has read, and filled its outbox.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import torch

from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_memory import Meeting, share_memory
from distgnn.kernels.routing import route_by_owner
from distgnn.kernels.sparse_optimizer import gather_rows
from distgnn.kernels.threads import share_rows
from distgnn.timeline import GRADIENTS, ROWS


@dataclass(frozen=True)
class OwnerOrder:
    """A minibatch's nodes by owner.

    Attributes:
        nodes: distinct node ids int64 `[n]`. order: their positions, grouped by owner in rank order, int64 `[n]`.
        starts: where each owner's group begins in `order`, and the end, int64 `[W + 1]`.
    """

    nodes: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, nodes: np.ndarray, bounds: np.ndarray) -> OwnerOrder:
        """Of nodes int64 `[n]`; bounds: int64 `[W + 1]` node ranges."""
        counts, order = np.zeros(len(bounds) - 1, np.int64), np.empty(len(nodes), np.int64)
        route_by_owner(nodes, bounds, counts, order)
        return cls(nodes, order, np.concatenate([[0], np.cumsum(counts)]))

    def of_owner(self, rank: int) -> np.ndarray:
        """Positions of the nodes that a worker owns, int64 `[k]`."""
        return self.order[self.starts[rank] : self.starts[rank + 1]]

    def n_remote(self, rank: int) -> int:
        """Nodes that worker `rank`, whose they are, wants of others."""
        return len(self.nodes) - len(self.of_owner(rank))


@dataclass(frozen=True)
class Source:
    """Gradients of one worker for rows of this one.

    Attributes:
        rows: distinct, int64 `[k]`, node ids less this worker's first. at: where their gradients are, int64 `[k]`.
        own: whether that is the worker's own gradients, and not the outboxes.
    """

    rows: np.ndarray
    at: np.ndarray
    own: bool


class SharedRows:
    """The table of all workers and an outbox of each.

    Attributes:
        table: rows of all nodes, `[N, d]` by node id. outboxes: gradients `[W * N, d]`, worker r's from r * N on.
    """

    def __init__(
        self, memory: np.ndarray, group: WorkerGroup, n_nodes: int, dim: int, dtype: np.dtype, meeting: Meeting
    ) -> None:
        self.group, self.n_nodes, self._meeting = group, n_nodes, meeting
        at = 0

        def array(shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
            nonlocal at
            start, at = at, at + _pages(int(np.prod(shape)) * kind.itemsize)
            return memory[start : start + int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)

        self.table = array((n_nodes, dim), dtype)
        self.outboxes = array((group.size * n_nodes, dim), dtype)
        self._nodes = array((group.size, n_nodes), np.dtype(np.int64))  # whose gradients they are
        self._starts = array((group.size, group.size + 1), np.dtype(np.int64))  # of each receiver's part of an outbox

    @classmethod
    def of(cls, n_own: int, dim: int, dtype: torch.dtype, group: WorkerGroup) -> SharedRows | None:
        """For workers that own so many nodes each; None where they share no host. A collective."""
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        n_nodes = int(group.sum_floats([float(n_own)])[0])
        width, workers = dim * kind.itemsize, group.size
        parts = (n_nodes * width, workers * n_nodes * width, workers * n_nodes * 8, workers * (workers + 1) * 8)
        shared = share_memory(sum(map(_pages, parts)), group)
        if shared is None:
            return None
        return cls(shared[0], group, n_nodes, dim, kind, shared[1])

    def meet(self, name: str) -> None:
        """Wait for everybody. `name`: of the event."""
        with self.group.watch.collective(name):
            self._meeting.meet()

    def read(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """Rows of node ids int64 `[n]` to out `[n, d]`; a collective."""
        self.meet(ROWS)
        table = self.table
        share_rows(len(nodes), torch.get_num_threads(), lambda a, b: gather_rows(table, nodes[a:b], out[a:b]))

    def gradients(self, by_owner: OwnerOrder, grad: np.ndarray, low: int) -> list[Source]:
        """Hand gradients to their owners, and have those for the own rows, in rank order; a collective.

        Args:
            grad: `[n, d]` in the order of the nodes. low: this worker's first node.
        """
        rank, starts = self.group.rank, by_owner.starts
        before, after = int(starts[rank]), int(starts[rank + 1])
        n_own = after - before
        box = self.outboxes[rank * self.n_nodes : (rank + 1) * self.n_nodes]
        for positions, at in ((by_owner.order[:before], 0), (by_owner.order[after:], before)):
            self._nodes[rank, at : at + len(positions)] = by_owner.nodes[positions]
            _gather(grad, positions, box[at : at + len(positions)])
        self._starts[rank] = np.where(np.arange(len(starts)) > rank, starts - n_own, starts)
        self.meet(GRADIENTS)
        sources = []
        for worker in range(self.group.size):
            if worker == rank:
                positions = by_owner.of_owner(rank)
                sources.append(Source(by_owner.nodes[positions] - low, positions, own=True))
                continue
            start, stop = self._starts[worker, rank : rank + 2].tolist()
            first = worker * self.n_nodes
            places = np.arange(first + start, first + stop)
            sources.append(Source(self._nodes[worker, start:stop] - low, places, own=False))
        return sources


def _gather(table: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    share_rows(len(rows), torch.get_num_threads(), lambda a, b: gather_rows(table, rows[a:b], out[a:b]))


def _pages(n_bytes: int) -> int:
    """Rounded up to whole pages."""
    return -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
