"""Records that cross module borders, and the exceptions that users see.

Shape legend: N nodes, E edges, b seed edges of a worker's share, B of the global step, F_h entries of the cumulative
frontier before hop h (F_0 are the seeds), L hops, d embedding width. An entry is a node, and with time-respecting
sampling a (node, cut-off).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

USER = 0
ITEM = 1


class UserError(ValueError):
    """A mistake that the user can mend: one line saying what is wrong, where, and what to do (exit code 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class WorkerError(RuntimeError):
    """A worker died: one line that names its rank (exit code 1)."""


@dataclass(frozen=True, slots=True)
class SeedEdges:
    """One worker's share of the positives of a global step.

    Attributes:
        step: optimizer step, counted over the whole phase.
        epoch: epoch of the step.
        global_size: B, the number of seed edges of the step over all workers.
        user, item: node ids of the share's edges, int64 `[b]`.
        global_user, global_item: node ids of all edges of the step, int64 `[B]`, in the epoch's order.
        global_user_position: position of the item in its user's row, int64 `[B]` (for exclusion).
        share: positions of the share in the global step, int64 `[b]`, ascending.
        share_sizes: edges of each worker's share, int64 `[W]`.
        column_order: int64 `[B]`, row of every edge of the step in the shares concatenated in rank order.
        time, global_time: timestamps of the share's edges, int64 `[b]`, and of all edges of the step, int64 `[B]`; None
            where the topology has none.
    """

    step: int
    epoch: int
    global_size: int
    user: np.ndarray
    item: np.ndarray
    global_user: np.ndarray
    global_item: np.ndarray
    global_user_position: np.ndarray
    share: np.ndarray
    share_sizes: np.ndarray
    column_order: np.ndarray
    time: np.ndarray | None = None
    global_time: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One bipartite layer of a minibatch; its destinations are the prefix of its sources.

    Attributes:
        n_dst, n_src: sizes of F_h and F_(h+1).
        indptr: int64 `[n_dst + 1]`, offsets of each destination's drawn edges.
        indices: int32 `[e]`, local source of each drawn edge.
        degree: int64 `[n_src]`, full training degree of every source (destinations are the prefix); with
            time-respecting sampling the number of edges up to the entry's cut-off, but for the step's target edges, or
            -1 for sources without draws if nobody reads it (`NeighborSampler`'s leaf_degrees).
    """

    n_dst: int
    n_src: int
    indptr: np.ndarray
    indices: np.ndarray
    degree: np.ndarray


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """Everything a worker needs for one step.

    Attributes:
        step, epoch: of the seeds.
        global_size: B.
        blocks: `[L]`, blocks[0] reaches the seeds, blocks[-1] takes the input rows.
        nodes: distinct node ids whose rows are wanted, int64: those of F_L, in its order.
        node_type, stable_id: of the entries of F_L, uint8 and int64; F_h is its prefix. Seeds are distinct users, then
            distinct items.
        n_seed_users, n_seed_items: F_0 is that many users, then that many items.
        user_index, item_index: rows of the share's edges in F_0, int64 `[b]`.
        negative_index: rows of the negatives in F_0, int64 `[b, K]`, or `[K]` (shared); -1 where a user has every item;
            None with in-batch negatives.
        seed_index: rows in F_0 of seeds given as nodes, int64 `[n]`; None where the seeds are edges.
        masked: `(row, column)` int64 `[2, m]`: training positives of the row's user among the columns (the shared
            negatives, or the edges of the global step), but for the row's own; None where negatives are drawn an edge.
        column_item: node ids of the columns, int64 `[C]`, or None.
        column_order: int64 `[B]`, row of every column in the shares gathered in rank order (in-batch), or None.
        share: positions of the share's edges in the global step, int64 `[b]`.
        share_sizes: edges of each worker's share, int64 `[W]`.
        sampled_edges: number of drawn edges over the blocks.
        seconds: wall time of the sampling.
        sent: bytes that the sampling has sent to other workers, and in how many exchanges.
        entry_row: rows of the entries of F_L in `nodes`, int64; None where every node is one entry.
        cutoff: of the entries of F_L, int64; None without time-respecting sampling.
        column_time: timestamps of the columns, int64 `[C]`: a row may not see later ones than its own; or None.
        without_negatives: edges of the share for which no column is left.
    """

    step: int
    epoch: int
    global_size: int
    blocks: list[Block]
    nodes: np.ndarray
    node_type: np.ndarray
    stable_id: np.ndarray
    n_seed_users: int
    n_seed_items: int
    user_index: np.ndarray
    item_index: np.ndarray
    negative_index: np.ndarray | None
    seed_index: np.ndarray | None
    masked: np.ndarray | None
    column_item: np.ndarray | None
    column_order: np.ndarray | None
    share: np.ndarray
    share_sizes: np.ndarray
    sampled_edges: int
    seconds: float
    sent: tuple[int, int] = (0, 0)
    entry_row: np.ndarray | None = None
    cutoff: np.ndarray | None = None
    column_time: np.ndarray | None = None
    without_negatives: int = 0

    def node_of(self, entries: np.ndarray) -> np.ndarray:
        """Node ids of entries of F_L, int64, of any shape."""
        return self.nodes[entries if self.entry_row is None else self.entry_row[entries]]
