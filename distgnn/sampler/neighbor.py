"""The neighbour sampler: a step's seeds in, blocks and negatives out; safe to call from many threads."""

from __future__ import annotations

import threading
import time

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.negative_sampling import known_columns, shared_negatives, uniform_negatives
from distgnn.kernels.rng import STREAM_DRAW, STREAM_NEGATIVE, STREAM_SHARED_NEGATIVE, combine
from distgnn.sampler.exclusion import exclude
from distgnn.sampler.frontier import NO_CUTOFF, EntryFrontier, Frontier, NodeFrontier, Reached, Scratch
from distgnn.sampler.held_rows import Exclusion
from distgnn.sampler.seeds import step_key
from distgnn.sampler.store import LocalStore, TopologyStore
from distgnn.types import Block, MiniBatch, SeedEdges, UserError

_NONE = np.empty(0, np.int64)
_NO_FILTER = np.empty(0, np.uint64)


def _add(frontier: Frontier, nodes: np.ndarray, cutoff: np.ndarray | None) -> np.ndarray:
    """Rows of nodes in the frontier, int64 of their shape, -1 for -1; numbers of cut-offs are of that shape too."""
    index = np.empty(nodes.size, np.int64)
    frontier.add(nodes.reshape(-1), None if cutoff is None else cutoff.reshape(-1), index)
    return index.reshape(nodes.shape)


class NeighborSampler:
    """Sampling without replacement, hop by hop, every draw a hash of (seed, step, hop, type, stable id).

    Args:
        graph: the training topology.
        fanout: most neighbours drawn a node, one entry a hop, the seeds' hop first.
        seed: of the run.
        expand: "all" draws afresh for every node of the cumulative frontier at every hop (sampled propagation is then
            unbiased); "new" expands only newly reached nodes, PyG's cheaper rule, for comparisons on equal work.
        exclude_targets: leave the seed edges of the whole global step out of every block, in both directions.
        negatives: "none", "uniform" (num_negatives for each edge), "shared" (num_negatives for the step) or "in_batch"
            (the items of the step's other edges).
        num_negatives: K.
        time_respecting: aggregate for a seed edge, at any hop, only edges that are no later than it. A node then stands
            in a block once for each cut-off, and degrees are those at the cut-off. The graph must have timestamps.
            Seeds given as nodes have no cut-off.
        weighted: draw neighbours with probability by their edges' weights (of what is left of a row), not uniformly;
            edges of weight 0 are never drawn. The graph must have weights. A mean over the drawn is then biased towards
            heavy edges, by intention.
        leaf_degrees: whether blocks say the degrees of sources that nothing is drawn for. With time-respecting sampling
            these take a search each, most of a step's; False leaves them at -1, for who does not read them.
        store: draws the rows; None: the graph, which then holds all rows. Where it may wait, `sample` is a collective.
    """

    def __init__(
        self,
        graph: Topology,
        fanout: tuple[int, ...] | list[int],
        seed: int,
        *,
        expand: str = "all",
        exclude_targets: bool = True,
        negatives: str = "none",
        num_negatives: int = 1,
        time_respecting: bool = False,
        weighted: bool = False,
        leaf_degrees: bool = True,
        store: TopologyStore | None = None,
    ) -> None:
        if not fanout or any(f < 1 for f in fanout):
            raise UserError(f"fanout = {list(fanout)} must name at least one hop, each at least 1")
        if expand not in ("all", "new"):
            raise UserError(f"expand = {expand!r} is not one of all, new")
        if negatives not in ("none", "uniform", "shared", "in_batch"):
            raise UserError(f"negatives = {negatives!r} is not one of none, uniform, shared, in_batch")
        if time_respecting and not graph.has_times:
            raise UserError("time_respecting = True needs a graph with timestamps; this one has none")
        if time_respecting and negatives == "shared":
            raise UserError("negatives = 'shared' does not go with time_respecting: they would need a cut-off each")
        if weighted and not graph.has_weights:
            raise UserError("weighted = True needs a graph with weights; this one has none")
        if weighted and time_respecting:
            raise UserError("weighted = True does not go with time_respecting: its tables are of whole rows")
        self.graph = graph
        self.fanout = tuple(int(f) for f in fanout)
        self.seed = seed
        self.expand = expand
        self.exclude_targets = exclude_targets
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.time_respecting = time_respecting
        self.weighted = weighted
        self.leaf_degrees = leaf_degrees
        self.store = store or LocalStore(graph)
        self._local = threading.local()

    @property
    def round_trips(self) -> int:
        """How often a step asks the store after its seeds."""
        return len(self.fanout) + (self.time_respecting and self.leaf_degrees)

    def sample(self, seeds: SeedEdges | np.ndarray, step: int) -> MiniBatch:
        """The minibatch of a step.

        Args:
            seeds: a share of seed edges, or node ids int64 `[n]` (then nothing is excluded and no negative drawn).
            step: part of every draw's key.
        """
        if isinstance(seeds, SeedEdges):
            return self._sample_edges(seeds, step)
        return self._sample_nodes(np.ascontiguousarray(seeds, np.int64), step)

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = Scratch(self.graph.n_nodes)
        return scratch

    def _frontier(self, scratch: Scratch, time: np.ndarray | None) -> tuple[Frontier, np.ndarray | None]:
        """An empty frontier, and the numbers in it of the seeds' cut-offs `time` int64 `[b]`, or None."""
        if not self.time_respecting:
            return NodeFrontier(self.store, scratch, self.weighted), None
        assert time is not None
        cutoffs, number, n_seeds = np.unique(time, return_inverse=True, return_counts=True)
        return EntryFrontier(self.store, scratch, cutoffs, n_seeds, self.leaf_degrees), number

    def _sample_nodes(self, seeds: np.ndarray, step: int) -> MiniBatch:
        started = time.perf_counter()
        if len(seeds) and not (0 <= seeds.min() and seeds.max() < self.graph.n_nodes):
            raise UserError(f"seeds: node ids must lie in [0, {self.graph.n_nodes})")
        scratch = self._scratch()
        frontier, cutoff = self._frontier(scratch, np.full(len(seeds), NO_CUTOFF))
        node_type = self.graph.describe(seeds)[0]
        users_first = np.argsort(node_type, kind="stable")
        seed_index = np.empty(len(seeds), np.int64)
        seed_index[users_first] = _add(frontier, seeds[users_first], cutoff)
        n_seeds = len(frontier)
        reached, blocks = self._expand(scratch, frontier, step, None)
        n_users = int((reached.node_type[:n_seeds] == 0).sum())
        return MiniBatch(
            step=step,
            epoch=0,
            global_size=0,
            blocks=blocks,
            nodes=reached.nodes,
            node_type=reached.node_type,
            stable_id=reached.stable_id,
            n_seed_users=n_users,
            n_seed_items=n_seeds - n_users,
            user_index=_NONE,
            item_index=_NONE,
            negative_index=None,
            seed_index=seed_index,
            masked=None,
            column_item=None,
            column_order=None,
            share=_NONE,
            share_sizes=_NONE,
            sampled_edges=self._drawn(blocks),
            seconds=time.perf_counter() - started,
            sent=self.store.sent(step),
            entry_row=reached.entry_row,
            cutoff=reached.cutoff,
        )

    def _sample_edges(self, seeds: SeedEdges, step: int) -> MiniBatch:
        started = time.perf_counter()
        if self.time_respecting and seeds.time is None:
            raise UserError("seeds: they carry no timestamps, which time_respecting goes by")
        scratch = self._scratch()
        frontier, cutoff = self._frontier(scratch, seeds.time)
        negatives, columns, own_column = self._draw_negatives(seeds, step)
        user_index = _add(frontier, seeds.user, cutoff)
        n_users = len(frontier)
        item_index = _add(frontier, seeds.item, cutoff)
        negative_index = None
        if negatives is not None:
            of_each = None if cutoff is None else np.repeat(cutoff, self.num_negatives)
            negative_index = _add(frontier, negatives, of_each)
        n_seeds = len(frontier)
        masked = None if columns is None else self._known_columns(scratch, seeds.user, own_column, columns)
        column_time = seeds.global_time if self.time_respecting and columns is not None else None
        reached, blocks = self._expand(scratch, frontier, step, seeds if self.exclude_targets else None)
        return MiniBatch(
            step=step,
            epoch=seeds.epoch,
            global_size=seeds.global_size,
            blocks=blocks,
            nodes=reached.nodes,
            node_type=reached.node_type,
            stable_id=reached.stable_id,
            n_seed_users=n_users,
            n_seed_items=n_seeds - n_users,
            user_index=user_index,
            item_index=item_index,
            negative_index=negative_index,
            seed_index=None,
            masked=masked,
            column_item=columns,
            column_order=seeds.column_order if self.negatives == "in_batch" else None,
            share=seeds.share,
            share_sizes=seeds.share_sizes,
            sampled_edges=self._drawn(blocks),
            seconds=time.perf_counter() - started,
            sent=self.store.sent(step),
            entry_row=reached.entry_row,
            cutoff=reached.cutoff,
            column_time=column_time,
            without_negatives=0 if column_time is None else _without_columns(seeds.time, column_time, masked),
        )

    def _draw_negatives(self, seeds: SeedEdges, step: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
        """(nodes to embed beside the edges, columns of a logit matrix, each row's own column)."""
        graph = self.graph
        nobody = np.full(len(seeds.user), -1, np.int64)
        if self.negatives == "in_batch":
            return None, seeds.global_item, seeds.share
        if self.negatives == "shared":
            shared = np.empty(self.num_negatives, np.int64)
            key = step_key(self.seed, STREAM_SHARED_NEGATIVE, step)
            shared_negatives(key, graph.n_items, graph.n_users, graph.node_id, shared)
            return shared, shared, nobody
        if self.negatives == "uniform":
            drawn = np.empty((len(seeds.user), self.num_negatives), np.int64)
            uniform_negatives(
                seeds.user,
                seeds.item,
                step_key(self.seed, STREAM_NEGATIVE, step),
                graph.n_items,
                graph.n_users,
                *graph.csc,
                graph.stable_id,
                graph.node_id,
                drawn,
            )
            return drawn, None, nobody
        return None, None, nobody

    def _known_columns(
        self, scratch: Scratch, user: np.ndarray, own_column: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        graph = self.graph
        return known_columns(
            user,
            own_column,
            columns,
            scratch.column_head,
            np.empty(len(columns), np.int32),
            *graph.csc,
        )

    def _expand(
        self, scratch: Scratch, frontier: Frontier, step: int, targets: SeedEdges | None
    ) -> tuple[Reached, list[Block]]:
        """Sample every hop from the seeds' frontier."""
        endpoints, exclusion = self._exclusion(scratch, targets)
        key = step_key(self.seed, STREAM_DRAW, step)
        first = 0
        indptr, indices = np.zeros(1, np.int64), np.empty(0, np.int32)
        drawn: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        for hop, fanout in enumerate(self.fanout):
            if self.expand == "all":
                first = 0
            with np.errstate(over="ignore"):
                hop_key = np.uint64(combine(key, np.uint64(hop)))
            n_frontier = len(frontier)
            hop_indptr, hop_indices = frontier.draw(step, first, fanout, hop_key, exclusion)
            if first:
                hop_indptr = np.concatenate([indptr, indptr[-1] + hop_indptr[1:]])
                hop_indices = np.concatenate([indices, hop_indices])
            indptr, indices = hop_indptr, hop_indices
            drawn.append((n_frontier, len(frontier), indptr, indices))
            first = n_frontier
        reached = frontier.finish(step, exclusion)
        scratch.excluded_row[endpoints] = -1
        return reached, [Block(n_dst, n_src, p, i, reached.degree[:n_src]) for n_dst, n_src, p, i in drawn]

    def _exclusion(self, scratch: Scratch, targets: SeedEdges | None) -> tuple[np.ndarray, Exclusion]:
        """Endpoints of the edges to leave out, and these edges; the endpoints are marked in the scratch."""
        if targets is None:
            return _NONE, Exclusion(scratch.excluded_row, _NONE, _NONE, _NO_FILTER)
        return exclude(
            self.graph,
            scratch.excluded_row,
            targets.global_user,
            targets.global_item,
            targets.global_user_position,
            self.time_respecting,
        )

    def _drawn(self, blocks: list[Block]) -> int:
        return sum(len(b.indices) for b in (blocks if self.expand == "all" else blocks[-1:]))


def _without_columns(time: np.ndarray | None, column_time: np.ndarray, known: np.ndarray | None) -> int:
    """How many rows have no column but their own that is neither later than they are nor known to their user.

    Args:
        time: of the rows, int64 `[b]`. column_time: int64 `[C]`. known: `(row, column)` int64 `[2, m]`.
    """
    assert time is not None and known is not None
    earlier = np.searchsorted(np.sort(column_time), time, side="right") - 1
    row, column = known
    earlier -= np.bincount(row[column_time[column] <= time[row]], minlength=len(time))
    return int((earlier == 0).sum())
