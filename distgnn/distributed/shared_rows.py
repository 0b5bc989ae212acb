"""Embedding rows in memory that all workers of a host map: nobody sends rows, who wants some reads them.

A worker moves its own rows alone. It finds the gradients of the others in their outboxes. Two meetings a step keep
reading and moving apart: before rows of others are read everybody has moved those of the last step, and before rows are
moved everybody has read, and filled its outbox. Who has moved its rows says so at once, and waits for the others only
when it wants theirs: what lies between, its own rows among it, makes up for their being late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distgnn.distributed.device_memory import RowBuffer, numpy_dtype
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_memory import Meeting, share_arrays
from distgnn.kernels.routing import route_by_owner
from distgnn.kernels.sparse_optimizer import gather_rows, gather_rows_to
from distgnn.kernels.threads import share_rows
from distgnn.pages import collapse
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
        nodes: distinct, int64 `[k]`. low: of a node's row, what to take from its id.
        places: where the gradients are, int64 `[k]`, less `base`.
    """

    nodes: np.ndarray
    places: np.ndarray
    low: int = 0
    base: int = 0


class SharedRows:
    """The table of all workers and an outbox of each.

    Attributes:
        table: rows of all nodes, `[N, d]` by node id. outboxes: gradients `[W * N, d]`, worker r's from r * N on.
        outbox: this worker's.
    """

    def __init__(self, arrays: list[np.ndarray], group: WorkerGroup, meeting: Meeting) -> None:
        self.table, self.outboxes, self._nodes, self._places, self._starts = arrays
        self.group, self.n_nodes, self._meeting = group, len(self.table), meeting
        self.outbox = self.outboxes[group.rank * self.n_nodes : (group.rank + 1) * self.n_nodes]
        self._moved = False  # whether this worker has said that its rows are as they are to be read
        self._large = [0] * group.size  # rows of each outbox that are on large pages here

    @classmethod
    def of(cls, n_own: int, dim: int, dtype: torch.dtype, group: WorkerGroup) -> SharedRows | None:
        """For workers that own so many nodes each; None where they share no host. A collective."""
        kind, ids = numpy_dtype(dtype), np.dtype(np.int64)
        n_nodes, workers = int(group.sum_floats([float(n_own)])[0]), group.size
        shared = share_arrays(
            [
                ((n_nodes, dim), kind),
                ((workers * n_nodes, dim), kind),
                ((workers, n_nodes), ids),  # nodes of each worker's step, by owner
                ((workers, n_nodes), ids),  # where in its outbox their gradients are
                ((workers, workers + 1), ids),  # where each owner's nodes begin
            ],
            group,
        )
        return None if shared is None else cls(shared[0], group, shared[1])

    def use_large_pages(self) -> None:
        """For the table, once all rows are written; a collective: who only reads rows maps the pages that are there."""
        rows = -(-self.n_nodes // self.group.size)
        collapse(self.table[self.group.rank * rows : (self.group.rank + 1) * rows])
        self.group.barrier()
        collapse(self.table)

    def use_large_outbox(self, worker: int, n: int) -> None:
        """For so many rows of a worker's outbox, and some more."""
        if n > self._large[worker]:
            self._large[worker] = min(n + n // 8, self.n_nodes)
            start = worker * self.n_nodes
            collapse(self.outboxes[start : start + self._large[worker]])

    def moved(self) -> None:
        """This worker's rows are as they are to be read next."""
        if not self._moved:
            self._moved = True
            self._meeting.arrive()

    def _wait(self, name: str) -> None:
        """Wait for everybody. `name`: of the event."""
        with self.group.watch.collective(name):
            self._meeting.wait()

    def read(self, by_owner: OwnerOrder, out: np.ndarray) -> None:
        """Rows of the nodes to out `[n, d]`, in their order; a collective."""
        self.moved()
        self._moved = False
        n, rank, starts = len(by_owner.nodes), self.group.rank, by_owner.starts
        if self._meeting.complete:
            self._wait(ROWS)
            table, nodes = self.table, by_owner.nodes  # in the order in which they are written: faster than by owner
            share_rows(n, torch.get_num_threads(), lambda a, b: gather_rows(table, nodes[a:b], out[a:b]))
            return
        before, after = int(starts[rank]), int(starts[rank + 1])
        self._read(by_owner, before, after, out)
        self._wait(ROWS)
        self._read(by_owner, 0, before, out)
        self._read(by_owner, after, n, out)

    def _read(self, by_owner: OwnerOrder, start: int, stop: int, out: np.ndarray) -> None:
        """The rows of a part of the owners' order."""
        table, nodes, order = self.table, by_owner.nodes, by_owner.order[start:stop]
        share_rows(len(order), torch.get_num_threads(), lambda a, b: gather_rows_to(table, nodes, order[a:b], out))

    def gradients(self, by_owner: OwnerOrder, grad: np.ndarray, low: int) -> list[Source]:
        """Hand gradients to their owners, and have those for the own rows, in rank order; a collective.

        Args:
            grad: `[n, d]` in the order of the nodes; is put into the outbox unless it lies there already.
            low: this worker's first node.

        Returns:
            What to read in the outboxes.
        """
        rank, n = self.group.rank, len(by_owner.nodes)
        if grad.ctypes.data != self.outbox.ctypes.data:
            self.outbox[:n] = grad
        np.take(by_owner.nodes, by_owner.order, out=self._nodes[rank, :n])
        self._places[rank, :n] = by_owner.order
        self._starts[rank] = by_owner.starts
        self._meeting.arrive()
        self._wait(GRADIENTS)
        sources = []
        for worker in range(self.group.size):
            start, stop = self._starts[worker, rank : rank + 2].tolist()
            self.use_large_outbox(worker, int(self._starts[worker, -1]))
            nodes, places = self._nodes[worker, start:stop], self._places[worker, start:stop]
            sources.append(Source(nodes, places, low, worker * self.n_nodes))
        return sources


class OutboxBuffer(RowBuffer):
    """The worker's outbox as memory for a step's gradients, which then need not be put there."""

    def __init__(self, shared: SharedRows) -> None:
        super().__init__()
        self._shared, self._outbox = shared, torch.from_numpy(shared.outbox)

    def rows(self, n: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
        """See `RowBuffer`; other memory where that many do not fit, as (node, cut-off) entries may not."""
        if n <= len(self._outbox) and dim == self._outbox.shape[1] and dtype == self._outbox.dtype:
            self._shared.use_large_outbox(self._shared.group.rank, n)
            return self._outbox[:n]
        return super().rows(n, dim, dtype)
