"""Where a sampler gets rows from: this worker's memory, or the workers that own them. The draws are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distgnn.distributed.ordered_exchange import OrderedExchange
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import count_draws, draw_rows, place_rows
from distgnn.kernels.routing import route_by_owner
from distgnn.kernels.seed_order import neighbors_at


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Positions of a step's target edges, as the kernels take them.

    Attributes:
        row: int32 `[N]`, row in indptr of an endpoint, else -1.
        indptr: int64. positions: int64, sorted within a row; where a row is not held only their number counts.
    """

    row: np.ndarray
    indptr: np.ndarray
    positions: np.ndarray


class TopologyStore(Protocol):
    """Rows of the graph. With several workers a call may be a collective: every worker makes the same calls a step.

    Attributes:
        topology: what is held here. may_wait: whether a call may wait for other workers.
    """

    topology: Topology
    may_wait: bool

    def begin(self, start: int, stop: int, width: int, hops: int) -> None:
        """Steps [start, stop) will be sampled, at most `width` at once: `items`, then `draw` for each hop."""

    def finish(self, stop: int) -> None:
        """No step from `stop` on will be sampled, at no worker."""

    def join(self) -> None:
        """All steps are sampled."""

    def fail(self, error: BaseException) -> None:
        """This worker goes on no further."""

    def items(self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Items of a global step's edges, node ids int64 `[B]`.

        Args:
            user, position: node ids, and positions in their rows, int64 `[B]`. owner: workers that own them, `[B]`.
        """

    def draw(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours drawn for nodes int64 `[n]`: int64 `[n + 1]` and node ids, integer (see `draw_rows`)."""

    def sent(self, step: int) -> tuple[int, int]:
        """Bytes sent to other workers for a step, and in how many exchanges."""


class LocalStore:
    """All rows are held here: no call waits for anybody.

    Args:
        topology: with every partition.
    """

    may_wait = False

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def begin(self, start: int, stop: int, width: int, hops: int) -> None:
        """Nothing to begin."""

    def finish(self, stop: int) -> None:
        """Nothing to finish."""

    def join(self) -> None:
        """Nobody to wait for."""

    def fail(self, error: BaseException) -> None:
        """Nobody waits."""

    def items(self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """See `TopologyStore`."""
        item = np.empty(len(user), np.int64)
        neighbors_at(user, position, *self.topology.csc, item)
        return item

    def draw(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        return _draw_held(self.topology, nodes, fanout, hop_key, exclusion)

    def sent(self, step: int) -> tuple[int, int]:
        """Nothing."""
        return 0, 0


def _draw_held(
    topology: Topology, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.zeros(len(nodes) + 1, np.int64)
    neighbors = np.empty(len(nodes) * fanout, topology.like_indices.dtype)
    draw_rows(
        nodes,
        fanout,
        hop_key,
        *topology.csc,
        topology.stable_id,
        exclusion.row,
        exclusion.indptr,
        exclusion.positions,
        indptr,
        neighbors,
    )
    return indptr, neighbors[: indptr[-1]]


def store_of(topology: Topology, bounds: np.ndarray, group: WorkerGroup) -> TopologyStore:
    """The store for what a worker holds; a collective where that is not everything, at every worker alike.

    Args:
        bounds: int64 `[W + 1]` node ranges.
    """
    if len(topology.held) == topology.n_parts:
        return LocalStore(topology)
    return PartitionedStore(topology, bounds, group)


class PartitionedStore:
    """Own partitions' rows are held here; the others are drawn by the workers that hold them, one round trip a hop.

    An owner draws for a node what anybody would: the key names the node, the positions to leave out come from the whole
    global step. The asker knows from degrees how many neighbours an answer has, so that it is node ids alone.

    Args:
        topology: with this worker's partitions. bounds: int64 `[W + 1]` node ranges.
        group: of two workers at least; every worker makes its store (a collective).
    """

    may_wait = True

    def __init__(self, topology: Topology, bounds: np.ndarray, group: WorkerGroup) -> None:
        assert topology.degrees is not None and group.size > 1
        self.topology = topology
        self.degrees = topology.degrees
        self.bounds = bounds
        self.rank, self.size = group.rank, group.size
        self.exchange = OrderedExchange(group.rank, group.size, group.new_cpu_group())

    def begin(self, start: int, stop: int, width: int, hops: int) -> None:
        """See `TopologyStore`."""
        self.exchange.begin(start, stop, width, 1 + 2 * hops)

    def finish(self, stop: int) -> None:
        """See `TopologyStore`."""
        self.exchange.finish(stop)

    def join(self) -> None:
        """See `TopologyStore`."""
        self.exchange.join()

    def fail(self, error: BaseException) -> None:
        """See `TopologyStore`."""
        self.exchange.fail(error)

    def sent(self, step: int) -> tuple[int, int]:
        """See `TopologyStore`."""
        return self.exchange.sent(step)

    def items(self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """See `TopologyStore`: the owners of the users tell everybody, in the order of the step."""
        own = np.flatnonzero(owner == self.rank)
        own_item = np.empty(len(own), self.topology.like_indices.dtype)
        neighbors_at(user[own], position[own], *self.topology.csc, own_item)
        sizes, expected = [len(own)] * self.size, np.bincount(owner, minlength=self.size).tolist()
        sizes[self.rank] = expected[self.rank] = 0
        others = np.argsort(owner, kind="stable")
        others = others[owner[others] != self.rank]
        told = self.exchange.call(step, np.tile(own_item, self.size - 1), sizes, expected)
        item = np.empty(len(user), np.int64)
        item[own] = own_item
        item[others] = told.result()[0]
        return item

    def draw(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        dtype = self.topology.like_indices.dtype
        indptr = np.empty(len(nodes) + 1, np.int64)
        count_draws(nodes, fanout, self.degrees, exclusion.row, exclusion.indptr, indptr)
        counts, order = np.zeros(self.size, np.int64), np.empty(len(nodes), np.int64)
        route_by_owner(nodes, self.bounds, counts, order)
        ends = np.cumsum(counts)
        first, last = int(ends[self.rank] - counts[self.rank]), int(ends[self.rank])
        own, others = order[first:last], np.concatenate([order[:first], order[last:]])
        counts[self.rank] = 0
        request = self.exchange.call(step, nodes[others].astype(dtype), counts.tolist())
        # This worker's own rows are drawn while the request is under way.
        neighbors = np.empty(indptr[-1], dtype)
        place_rows(own, _draw_held(self.topology, nodes[own], fanout, hop_key, exclusion)[1], indptr, neighbors)
        asked, asked_counts = request.result()
        answer_indptr, answer = _draw_held(self.topology, asked, fanout, hop_key, exclusion)
        answer_sizes = np.diff(answer_indptr[np.cumsum([0, *asked_counts])])
        drawn = np.diff(indptr)[others]
        expected = np.diff(np.concatenate([[0], np.cumsum(drawn)])[np.cumsum([0, *counts])])
        arrived = self.exchange.call(step, answer, answer_sizes.tolist(), expected.tolist()).result()[0]
        place_rows(others, arrived, indptr, neighbors)
        return indptr, neighbors
