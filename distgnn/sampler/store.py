"""Where a sampler gets rows from: this worker's memory, or the workers that own them. The draws are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from distgnn.distributed.mailboxes import MailboxExchange
from distgnn.distributed.ordered_exchange import OrderedExchange
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import count_draws, place_rows
from distgnn.kernels.routing import route_by_owner
from distgnn.kernels.seed_order import neighbors_at
from distgnn.kernels.temporal_sampling import times_at
from distgnn.sampler.held_rows import Exclusion, count_held_until, draw_held, draw_held_until


class TopologyStore(Protocol):
    """Rows of the graph. With several workers a call may be a collective: every worker makes the same calls a step.

    Attributes:
        topology: what is held here. may_wait: whether a call may wait for other workers.
    """

    topology: Topology
    may_wait: bool

    def begin(self, start: int, stop: int, width: int, round_trips: int) -> None:
        """Steps [start, stop) will be sampled, at most `width` at once.

        Args:
            round_trips: calls of a step after `items` or `dated_items`: one of `draw`, `draw_by_weight` or `draw_until`
                for each hop, and one of `degree_until` after the latter where leaves are counted.
        """

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

    def dated_items(
        self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `items`, and the edges' timestamps int64 `[B]`."""

    def draw(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours drawn for nodes int64 `[n]`: int64 `[n + 1]` and node ids, integer (see `draw_rows`)."""

    def draw_by_weight(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `draw`, by weight (see `draw_rows_by_weight`)."""

    def draw_until(
        self, step: int, nodes: np.ndarray, cutoff: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `draw` for entries with cut-offs int64 `[n]`, and their degrees int64 `[n]` (see `draw_rows_until`)."""

    def degree_until(self, step: int, nodes: np.ndarray, cutoff: np.ndarray, exclusion: Exclusion) -> np.ndarray:
        """The degrees alone."""

    def sent(self, step: int) -> tuple[int, int]:
        """Bytes sent to other workers for a step, and in how many exchanges."""

    def waited(self, step: int) -> float:
        """Seconds that a step's calls have waited for exchanges with other workers; told once."""


class LocalStore:
    """All rows are held here: no call waits for anybody.

    Args:
        topology: with every partition.
    """

    may_wait = False

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def begin(self, start: int, stop: int, width: int, round_trips: int) -> None:
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
        return draw_held(self.topology, nodes, fanout, hop_key, exclusion)

    def draw_by_weight(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        return draw_held(self.topology, nodes, fanout, hop_key, exclusion, by_weight=True)

    def dated_items(
        self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        return self.items(step, user, position, owner), _times(self.topology, user, position)

    def draw_until(
        self, step: int, nodes: np.ndarray, cutoff: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        return draw_held_until(self.topology, nodes, cutoff, fanout, hop_key, exclusion)

    def degree_until(self, step: int, nodes: np.ndarray, cutoff: np.ndarray, exclusion: Exclusion) -> np.ndarray:
        """See `TopologyStore`."""
        return count_held_until(self.topology, nodes, cutoff, exclusion)

    def sent(self, step: int) -> tuple[int, int]:
        """Nothing."""
        return 0, 0

    def waited(self, step: int) -> float:
        """Not at all."""
        return 0.0


def _times(topology: Topology, user: np.ndarray, position: np.ndarray) -> np.ndarray:
    time = np.empty(len(user), np.int64)
    times_at(user, position, *topology.csc, *topology.times, time)
    return time


def store_of(
    topology: Topology, bounds: np.ndarray, group: WorkerGroup, *, steps: int = 1, transport: str = "messages"
) -> TopologyStore:
    """The store for what a worker holds; a collective where that is not everything, at every worker alike.

    Args:
        bounds, steps, transport: see `PartitionedStore`.
    """
    if len(topology.held) == topology.n_parts:
        return LocalStore(topology)
    return PartitionedStore(topology, bounds, group, steps=steps, transport=transport)


class PartitionedStore:
    """Own partitions' rows are held here; the others are drawn by the workers that hold them, one round trip a hop.

    An owner draws for a node what anybody would: the key names the node, the positions to leave out come from the whole
    global step. The asker knows from degrees how many neighbours an answer has, so that it is node ids alone.

    Args:
        topology: with this worker's partitions. bounds: int64 `[W + 1]` node ranges.
        group: of two workers at least; every worker makes its store (a collective).
        steps: consecutive ones that may be under way at once.
        transport: of requests and answers: `messages`; `auto` and `memory`: memory that the workers of a host map, and
            messages where they are on several.
    """

    may_wait = True

    def __init__(
        self,
        topology: Topology,
        bounds: np.ndarray,
        group: WorkerGroup,
        *,
        steps: int = 1,
        transport: str = "messages",
    ) -> None:
        assert group.size > 1
        self.topology = topology
        self.bounds = bounds
        self.rank, self.size = group.rank, group.size
        shared = None if transport == "messages" else MailboxExchange.of(group, steps)
        self.exchange = shared or OrderedExchange(group.rank, group.size, group.new_cpu_group(), group.watch)

    def begin(self, start: int, stop: int, width: int, round_trips: int) -> None:
        """See `TopologyStore`."""
        self.exchange.begin(start, stop, width, 1 + 2 * round_trips)

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

    def waited(self, step: int) -> float:
        """See `TopologyStore`."""
        return self.exchange.waited(step)

    def items(self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """See `TopologyStore`: the owners of the users tell everybody, in the order of the step."""
        own = np.flatnonzero(owner == self.rank)
        own_item = np.empty(len(own), self.topology.like_indices.dtype)
        neighbors_at(user[own], position[own], *self.topology.csc, own_item)
        return self._told(step, own_item[:, None], owner)[:, 0].astype(np.int64)

    def dated_items(
        self, step: int, user: np.ndarray, position: np.ndarray, owner: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`: as `items`."""
        own = np.flatnonzero(owner == self.rank)
        own_item = np.empty(len(own), self.topology.like_indices.dtype)
        neighbors_at(user[own], position[own], *self.topology.csc, own_item)
        time = _times(self.topology, user[own], position[own])
        return _apart(self._told(step, _together(own_item, time), owner))

    def _told(self, step: int, own: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """What every edge's owner tells everybody of it, `[B, words]`, from this worker's own part."""
        n, words = own.shape
        sizes, expected = [own.size] * self.size, (words * np.bincount(owner, minlength=self.size)).tolist()
        sizes[self.rank] = expected[self.rank] = 0
        others = np.argsort(owner, kind="stable")
        others = others[owner[others] != self.rank]
        told = self.exchange.call(step, np.tile(own.reshape(-1), self.size - 1), sizes, expected)
        everybody = np.empty((len(owner), words), own.dtype)
        everybody[owner == self.rank] = own
        everybody[others] = told.result()[0].reshape(-1, words)
        return everybody

    def draw(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`."""
        dtype = self.topology.like_indices.dtype
        indptr = np.empty(len(nodes) + 1, np.int64)
        count_draws(nodes, fanout, self.topology.facts, exclusion.row, exclusion.indptr, indptr)
        own, others, counts = self._by_owner(nodes)
        request = self.exchange.call(step, nodes[others].astype(dtype), counts.tolist())
        # This worker's own rows are drawn while the request is under way.
        neighbors = np.empty(indptr[-1], dtype)
        place_rows(own, draw_held(self.topology, nodes[own], fanout, hop_key, exclusion)[1], indptr, neighbors)
        asked, asked_counts = request.result()
        answer_indptr, answer = draw_held(self.topology, asked, fanout, hop_key, exclusion)
        answer_sizes = np.diff(answer_indptr[np.cumsum([0, *asked_counts])])
        drawn = np.diff(indptr)[others]
        expected = np.diff(np.concatenate([[0], np.cumsum(drawn)])[np.cumsum([0, *counts])])
        arrived = self.exchange.call(step, answer, answer_sizes.tolist(), expected.tolist()).result()[0]
        place_rows(others, arrived, indptr, neighbors)
        return indptr, neighbors

    def draw_by_weight(
        self, step: int, nodes: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `TopologyStore`: an answer is how many were drawn for each (some may weigh nothing), then these."""
        topology = self.topology
        own, others, counts = self._by_owner(nodes)
        request = self.exchange.call(step, nodes[others].astype(topology.like_indices.dtype), counts.tolist())
        drawn = np.empty(len(nodes), np.int64)
        own_indptr, own_drawn = draw_held(topology, nodes[own], fanout, hop_key, exclusion, by_weight=True)
        drawn[own] = np.diff(own_indptr)
        asked, asked_counts = request.result()
        answer_indptr, answer = draw_held(topology, asked, fanout, hop_key, exclusion, by_weight=True)
        drawn[others], told = self._answer(step, np.diff(answer_indptr), answer_indptr, answer, asked_counts, counts)
        return self._placed(drawn, own, own_drawn, others, told)

    def draw_until(
        self, step: int, nodes: np.ndarray, cutoff: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `TopologyStore`: an answer is the asked entries' degrees, then the neighbours drawn for them."""
        topology = self.topology
        own, others, counts = self._by_owner(nodes)
        request = self._request(step, nodes[others], cutoff[others], counts)
        degree = np.empty(len(nodes), np.int64)
        _, own_drawn, degree[own] = draw_held_until(topology, nodes[own], cutoff[own], fanout, hop_key, exclusion)
        asked, asked_cutoff, asked_counts = request()
        indptr, drawn, drawn_degree = draw_held_until(topology, asked, asked_cutoff, fanout, hop_key, exclusion)
        degree[others], told = self._answer(step, drawn_degree, indptr, drawn, asked_counts, counts)
        return *self._placed(np.minimum(degree, fanout), own, own_drawn, others, told), degree

    def _answer(
        self,
        step: int,
        number: np.ndarray,
        indptr: np.ndarray,
        drawn: np.ndarray,
        asked_counts: list[int],
        counts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answer the others, and have their answers: a number for each node asked for, and all that was drawn.

        Args:
            number: told of each node that the others ask for, `[a]`. indptr, drawn: their neighbours.
            asked_counts: how many of these each worker asks for. counts: how many this one asks each for.
        """
        dtype = self.topology.like_indices.dtype
        ends = np.cumsum([0, *asked_counts])
        answer, sizes = [np.empty(0, dtype)], []
        for start, stop in zip(ends[:-1], ends[1:], strict=True):
            part = (number[start:stop].astype(dtype), drawn[indptr[start] : indptr[stop]])
            answer += part
            sizes.append(sum(map(len, part)))
        arrived, arrived_sizes = self.exchange.call(step, np.concatenate(answer), sizes).result()
        parts = np.split(arrived, np.cumsum(arrived_sizes)[:-1])
        told = np.concatenate([part[:n] for part, n in zip(parts, counts, strict=True)])
        return told, np.concatenate([part[n:] for part, n in zip(parts, counts, strict=True)])

    def _placed(
        self, number: np.ndarray, own: np.ndarray, own_drawn: np.ndarray, others: np.ndarray, told: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `number` int64 `[n]` neighbours each, from those of the own nodes and of the others."""
        indptr = np.concatenate([[0], np.cumsum(number)])
        neighbors = np.empty(indptr[-1], self.topology.like_indices.dtype)
        place_rows(own, own_drawn, indptr, neighbors)
        place_rows(others, told, indptr, neighbors)
        return indptr, neighbors

    def degree_until(self, step: int, nodes: np.ndarray, cutoff: np.ndarray, exclusion: Exclusion) -> np.ndarray:
        """See `TopologyStore`."""
        own, others, counts = self._by_owner(nodes)
        request = self._request(step, nodes[others], cutoff[others], counts)
        degree = np.empty(len(nodes), np.int64)
        degree[own] = count_held_until(self.topology, nodes[own], cutoff[own], exclusion)
        asked, asked_cutoff, asked_counts = request()
        answer = count_held_until(self.topology, asked, asked_cutoff, exclusion).astype(
            self.topology.like_indices.dtype
        )
        degree[others] = self.exchange.call(step, answer, asked_counts, counts.tolist()).result()[0]
        return degree

    def _by_owner(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of the own nodes and, in rank order, of the others, and how many each other worker owns."""
        counts, order = np.zeros(self.size, np.int64), np.empty(len(nodes), np.int64)
        route_by_owner(nodes, self.bounds, counts, order)
        ends = np.cumsum(counts)
        first, last = int(ends[self.rank] - counts[self.rank]), int(ends[self.rank])
        counts[self.rank] = 0
        return order[first:last], np.concatenate([order[:first], order[last:]]), counts

    def _request(
        self, step: int, nodes: np.ndarray, cutoff: np.ndarray, counts: np.ndarray
    ) -> Callable[[], tuple[np.ndarray, np.ndarray, list[int]]]:
        """Ask the owners about entries; what is called for gives what the others ask here, and how much each."""
        words = _together(nodes.astype(self.topology.like_indices.dtype), cutoff)
        request = self.exchange.call(step, words.reshape(-1), (words.shape[1] * counts).tolist())

        def asked() -> tuple[np.ndarray, np.ndarray, list[int]]:
            arrived, sizes = request.result()
            return *_apart(arrived.reshape(-1, words.shape[1])), [size // words.shape[1] for size in sizes]

        return asked


def _together(nodes: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Node ids, integer `[n]`, and times, int64 `[n]`, as words of the ids' dtype, `[n, words]`."""
    words = np.empty((len(nodes), 1 + time.itemsize // nodes.itemsize), nodes.dtype)
    words[:, 0] = nodes
    words[:, 1:] = np.ascontiguousarray(time)[:, None].view(nodes.dtype)
    return words


def _apart(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reverse: int64 `[n]` each."""
    return words[:, 0].astype(np.int64), np.ascontiguousarray(words[:, 1:]).view(np.int64)[:, 0]
