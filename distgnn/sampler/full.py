"""Blocks of full neighbourhoods, for layer-wise inference."""

from __future__ import annotations

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import draw_rows
from distgnn.kernels.relabel import append_distinct
from distgnn.types import Block

_NONE = np.empty(0, np.int64)


class FullNeighborhood:
    """Builds one-hop blocks with all neighbours of the destinations.

    Args:
        graph: the topology; the rows of the destinations must be held.
    """

    def __init__(self, graph: Topology) -> None:
        self.graph = graph
        self.slot = np.zeros(graph.n_nodes, np.int64)
        self.not_excluded = np.full(graph.n_nodes, -1, np.int32)
        self.epoch = 0

    def block(self, nodes: np.ndarray) -> tuple[Block, np.ndarray]:
        """(block, node ids of its sources int64 `[n_src]`) of distinct destinations int64 `[n]`, which come first."""
        graph = self.graph
        self.epoch += 1
        degree = graph.degree(nodes)
        self.slot[nodes] = (self.epoch << 32) + np.arange(len(nodes))
        total = int(degree.sum())
        sources = np.empty(min(len(nodes) + total, graph.n_nodes) + 1, np.int64)
        sources[: len(nodes)] = nodes
        indptr = np.zeros(len(nodes) + 1, np.int64)
        neighbors = np.empty(total, graph.like_indices.dtype)
        draw_rows(
            nodes,
            int(degree.max(initial=1)),
            np.uint64(0),
            *graph.csc,
            graph.stable_id,
            self.not_excluded,
            _NONE,
            _NONE,
            indptr,
            neighbors,
        )
        indices = np.empty(total, np.int32)
        n_src = append_distinct(neighbors, self.slot, self.epoch, sources, len(nodes), indices)
        sources = sources[:n_src]
        return Block(len(nodes), n_src, indptr, indices, graph.degree(sources)), sources


def rotated_block(graph: Topology, degree: np.ndarray, start: int, stop: int) -> Block:
    """Nodes start .. stop with all neighbours, not relabelled: the sources are these nodes, then all of the graph's.

    Where one worker holds every row of a layer, this spares relabelling and a copy of the rows.

    Args:
        degree: of all nodes, int64 `[N]`.
    """
    n = stop - start
    indptr, neighbors = graph.consecutive_rows(start, stop)
    indices = np.add(neighbors, n, dtype=np.int32, casting="same_kind")
    return Block(n, n + graph.n_nodes, indptr, indices, np.concatenate([degree[start:stop], degree]))


def chunks_by_edges(degree: np.ndarray, most_edges: int) -> list[tuple[int, int]]:
    """Consecutive ranges of nodes whose degrees (plus one each) sum to at most `most_edges`, one node at least."""
    ends = np.cumsum(degree + 1)
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < len(degree):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most_edges, side="right")))
        ranges.append((start, stop))
        start = stop
    return ranges
