"""The neighbour sampler: a step's seeds in, blocks and negatives out; safe to call from many threads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.negative_sampling import known_columns, shared_negatives, uniform_negatives
from distgnn.kernels.relabel import append_distinct
from distgnn.kernels.rng import STREAM_DRAW, STREAM_NEGATIVE, STREAM_SHARED_NEGATIVE, combine
from distgnn.sampler.exclusion import excluded_positions
from distgnn.sampler.seeds import step_key
from distgnn.sampler.store import Exclusion, LocalStore, TopologyStore
from distgnn.types import Block, MiniBatch, SeedEdges, UserError

_NONE = np.empty(0, np.int64)


class _Scratch:
    """Per-thread arrays of N, allocated once and never cleared."""

    def __init__(self, n_nodes: int) -> None:
        self.stamp = np.zeros(n_nodes, np.int32)
        self.local = np.empty(n_nodes, np.int32)
        self.epoch = 0
        self.excluded_row = np.full(n_nodes, -1, np.int32)
        self.column_head = np.full(n_nodes, -1, np.int32)

    def next_epoch(self) -> int:
        if self.epoch == np.iinfo(np.int32).max:
            self.stamp[:] = 0
            self.epoch = 0
        self.epoch += 1
        return self.epoch


@dataclass(frozen=True, slots=True)
class _Sampled:
    blocks: list[Block]
    nodes: np.ndarray
    node_type: np.ndarray
    stable_id: np.ndarray
    sampled_edges: int


def _distinct(scratch: _Scratch, epoch: int, *groups: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Distinct nodes of all groups in order of appearance, each group's rows in them, and the running count."""
    nodes = np.empty(sum(g.size for g in groups), np.int64)
    n = 0
    rows, counts = [], []
    for group in groups:
        index = np.empty(group.size, np.int64)
        n = append_distinct(group.reshape(-1), scratch.stamp, scratch.local, epoch, nodes, n, index)
        rows.append(index.reshape(group.shape))
        counts.append(n)
    return nodes[:n], rows, counts


class NeighborSampler:
    """Uniform sampling without replacement, hop by hop, every draw a hash of (seed, step, hop, type, stable id).

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
        store: TopologyStore | None = None,
    ) -> None:
        if not fanout or any(f < 1 for f in fanout):
            raise UserError(f"fanout = {list(fanout)} must name at least one hop, each at least 1")
        if expand not in ("all", "new"):
            raise UserError(f"expand = {expand!r} is not one of all, new")
        if negatives not in ("none", "uniform", "shared", "in_batch"):
            raise UserError(f"negatives = {negatives!r} is not one of none, uniform, shared, in_batch")
        self.graph = graph
        self.fanout = tuple(int(f) for f in fanout)
        self.seed = seed
        self.expand = expand
        self.exclude_targets = exclude_targets
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.store = store or LocalStore(graph)
        self._local = threading.local()

    @property
    def hops(self) -> int:
        """L: how often a step draws from the store."""
        return len(self.fanout)

    def sample(self, seeds: SeedEdges | np.ndarray, step: int) -> MiniBatch:
        """The minibatch of a step.

        Args:
            seeds: a share of seed edges, or node ids int64 `[n]` (then nothing is excluded and no negative drawn).
            step: part of every draw's key.
        """
        if isinstance(seeds, SeedEdges):
            return self._sample_edges(seeds, step)
        return self._sample_nodes(np.ascontiguousarray(seeds, np.int64), step)

    def _scratch(self) -> _Scratch:
        scratch: _Scratch | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = _Scratch(self.graph.n_nodes)
        return scratch

    def _sample_nodes(self, seeds: np.ndarray, step: int) -> MiniBatch:
        started = time.perf_counter()
        if len(seeds) and not (0 <= seeds.min() and seeds.max() < self.graph.n_nodes):
            raise UserError(f"seeds: node ids must lie in [0, {self.graph.n_nodes})")
        scratch = self._scratch()
        epoch = scratch.next_epoch()
        node_type = self.graph.describe(seeds)[0]
        users_first = np.argsort(node_type, kind="stable")
        frontier, (rows,), _ = _distinct(scratch, epoch, seeds[users_first])
        seed_index = np.empty(len(seeds), np.int64)
        seed_index[users_first] = rows
        sampled = self._expand(scratch, epoch, frontier, step, None)
        n_users = int((sampled.node_type[: len(frontier)] == 0).sum())
        return MiniBatch(
            step=step,
            epoch=0,
            global_size=0,
            blocks=sampled.blocks,
            nodes=sampled.nodes,
            node_type=sampled.node_type,
            stable_id=sampled.stable_id,
            n_seed_users=n_users,
            n_seed_items=len(frontier) - n_users,
            user_index=_NONE,
            item_index=_NONE,
            negative_index=None,
            seed_index=seed_index,
            masked=None,
            column_item=None,
            column_order=None,
            share=_NONE,
            share_sizes=_NONE,
            sampled_edges=sampled.sampled_edges,
            seconds=time.perf_counter() - started,
            sent=self.store.sent(step),
        )

    def _sample_edges(self, seeds: SeedEdges, step: int) -> MiniBatch:
        started = time.perf_counter()
        scratch = self._scratch()
        epoch = scratch.next_epoch()
        negatives, columns, own_column = self._draw_negatives(seeds, step)
        extra = [] if negatives is None else [negatives]
        frontier, rows, counts = _distinct(scratch, epoch, seeds.user, seeds.item, *extra)
        masked = None if columns is None else self._known_columns(scratch, seeds.user, own_column, columns)
        sampled = self._expand(scratch, epoch, frontier, step, seeds if self.exclude_targets else None)
        return MiniBatch(
            step=step,
            epoch=seeds.epoch,
            global_size=seeds.global_size,
            blocks=sampled.blocks,
            nodes=sampled.nodes,
            node_type=sampled.node_type,
            stable_id=sampled.stable_id,
            n_seed_users=counts[0],
            n_seed_items=len(frontier) - counts[0],
            user_index=rows[0],
            item_index=rows[1],
            negative_index=rows[2] if extra else None,
            seed_index=None,
            masked=masked,
            column_item=columns,
            column_order=seeds.column_order if self.negatives == "in_batch" else None,
            share=seeds.share,
            share_sizes=seeds.share_sizes,
            sampled_edges=sampled.sampled_edges,
            seconds=time.perf_counter() - started,
            sent=self.store.sent(step),
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
        self, scratch: _Scratch, user: np.ndarray, own_column: np.ndarray, columns: np.ndarray
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
        self, scratch: _Scratch, epoch: int, frontier: np.ndarray, step: int, targets: SeedEdges | None
    ) -> _Sampled:
        """Sample every hop from the stamped frontier."""
        graph = self.graph
        if targets is None:
            endpoints, excluded_indptr, excluded = _NONE, _NONE, _NONE
        else:
            endpoints, excluded_indptr, excluded = excluded_positions(
                graph, targets.global_user, targets.global_item, targets.global_user_position
            )
        scratch.excluded_row[endpoints] = np.arange(len(endpoints))
        exclusion = Exclusion(scratch.excluded_row, excluded_indptr, excluded)
        key = step_key(self.seed, STREAM_DRAW, step)
        nodes, first = frontier, 0
        indptr, indices = np.zeros(1, np.int64), np.empty(0, np.int32)
        drawn: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        for hop, fanout in enumerate(self.fanout):
            if self.expand == "all":
                first = 0
            with np.errstate(over="ignore"):
                hop_key = np.uint64(combine(key, np.uint64(hop)))
            n_frontier = len(nodes)
            hop_indptr, neighbors = self.store.draw(step, nodes[first:], fanout, hop_key, exclusion)
            room = np.empty(min(n_frontier + len(neighbors), graph.n_nodes), np.int64)
            room[:n_frontier] = nodes
            hop_indices = np.empty(len(neighbors), np.int32)
            n_nodes = append_distinct(neighbors, scratch.stamp, scratch.local, epoch, room, n_frontier, hop_indices)
            if first:
                hop_indptr = np.concatenate([indptr, indptr[-1] + hop_indptr[1:]])
                hop_indices = np.concatenate([indices, hop_indices])
            indptr, indices = hop_indptr, hop_indices
            drawn.append((n_frontier, n_nodes, indptr, indices))
            first, nodes = n_frontier, room[:n_nodes]
        scratch.excluded_row[endpoints] = -1
        node_type, stable, degree = graph.describe(nodes)
        blocks = [Block(n_dst, n_src, p, i, degree[:n_src]) for n_dst, n_src, p, i in drawn]
        edges = sum(len(b.indices) for b in blocks) if self.expand == "all" else len(blocks[-1].indices)
        return _Sampled(blocks, nodes, node_type, stable, edges)
