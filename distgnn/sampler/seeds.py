"""Which training edges a step trains on, and which of them are a worker's share."""

from __future__ import annotations

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.rng import STREAM_ORDER, hash3
from distgnn.kernels.seed_order import permuted_slice, users_of_edges
from distgnn.sampler.store import LocalStore, TopologyStore
from distgnn.types import SeedEdges


def step_key(seed: int, stream: np.uint64, step: int) -> np.uint64:
    """uint64 key of (seed, stream, step or epoch)."""
    with np.errstate(over="ignore"):
        return np.uint64(hash3(np.uint64(seed), stream, np.uint64(step)))


class SeedOrder:
    """The seed edges of every step: a keyed permutation of all edge ids an epoch, cut into slices of B.

    Args:
        topology: the training graph.
        batch_size: B, global.
        seed: of the run.
        worker_bounds: int64 `[W + 1]`, node ranges of the workers; an edge belongs to the worker that owns its user.
        rank: whose share to give.
        store: gives the items of edges; None: the topology, which then holds all rows.
    """

    def __init__(
        self,
        topology: Topology,
        batch_size: int,
        seed: int,
        worker_bounds: np.ndarray | None = None,
        rank: int = 0,
        store: TopologyStore | None = None,
    ) -> None:
        self.topology = topology
        self.batch_size = batch_size
        self.seed = seed
        self.bounds = np.array([0, topology.n_nodes]) if worker_bounds is None else worker_bounds
        self.rank = rank
        self.store = store or LocalStore(topology)
        self.steps_per_epoch = -(-topology.n_edges // batch_size)

    def edge_ids(self, step: int) -> np.ndarray:
        """Edge ids of a global step, int64 `[B]` (the last step of an epoch is short)."""
        epoch, t = divmod(step, self.steps_per_epoch)
        start = t * self.batch_size
        edges = np.empty(min(self.batch_size, self.topology.n_edges - start), np.int64)
        permuted_slice(start, self.topology.n_edges, step_key(self.seed, STREAM_ORDER, epoch), edges)
        return edges

    def seeds(self, step: int) -> SeedEdges:
        """This worker's share of a step, with the whole step's pairs that exclusion and in-batch columns need.

        A collective where the store may wait.
        """
        topology = self.topology
        edges = self.edge_ids(step)
        user, position = np.empty(len(edges), np.int64), np.empty(len(edges), np.int64)
        users_of_edges(edges, topology.user_offsets, topology.node_id, user, position)
        owner = np.searchsorted(self.bounds[1:], user, side="right")
        time = None
        if topology.has_times:
            item, time = self.store.dated_items(step, user, position, owner)
        else:
            item = self.store.items(step, user, position, owner)
        gathered = np.argsort(owner, kind="stable")
        column_order = np.empty(len(edges), np.int64)
        column_order[gathered] = np.arange(len(edges))
        share = np.flatnonzero(owner == self.rank)
        return SeedEdges(
            step=step,
            epoch=step // self.steps_per_epoch,
            global_size=len(edges),
            user=user[share],
            item=item[share],
            global_user=user,
            global_item=item,
            global_user_position=position,
            share=share,
            share_sizes=np.bincount(owner, minlength=len(self.bounds) - 1),
            column_order=column_order,
            time=None if time is None else time[share],
            global_time=time,
        )
