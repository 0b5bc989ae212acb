"""A distillation step's edges and candidates: seeds as in training, entries of the teacher's lists, shared items."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from distgnn.config import DistillConfig
from distgnn.graph import Topology
from distgnn.kernels.negative_sampling import known_columns, shared_negatives
from distgnn.kernels.ranked_draw import draw_ranked
from distgnn.kernels.rng import STREAM_DISTILL_ITEM, STREAM_LISTED
from distgnn.sampler import LocalStore
from distgnn.sampler.seeds import step_key
from distgnn.training.inference import OwnNodes
from distgnn.types import SeedEdges

HEAD = 20.0  # a list's entry r is drawn with weight exp(-r / HEAD)


@dataclass(frozen=True, slots=True)
class StudentBatch:
    """One worker's share of a step; b edges, B of all workers.

    Attributes:
        step, epoch, global_size: of the seeds.
        nodes: distinct node ids whose student rows are wanted, int64 `[n]`.
        user, item: rows of the edges in `nodes`, int64 `[b]`. own_user: the users' rows among the worker's own nodes.
        listed: rows of the drawn list entries in `nodes`, int64 `[b, m]`. listed_item: their stable ids, -1 for none.
        shared: rows of the shared items in `nodes`, int64 `[K]`. shared_item: their stable ids.
        shared_known: int64 `[2, k]`, (edge, shared item) pairs that are training edges.
        batch_known: int64 `[2, k]`, (edge, edge of the global step) likewise, but for the edge's own.
        share, share_sizes, column_order: as in `distgnn.types.SeedEdges`.
        seconds: wall time of making it.
    """

    step: int
    epoch: int
    global_size: int
    nodes: np.ndarray
    user: np.ndarray
    item: np.ndarray
    own_user: np.ndarray
    listed: np.ndarray
    listed_item: np.ndarray
    shared: np.ndarray
    shared_item: np.ndarray
    shared_known: np.ndarray
    batch_known: np.ndarray
    share: np.ndarray
    share_sizes: np.ndarray
    column_order: np.ndarray
    seconds: float


class CandidateSampler:
    """Makes the batches; safe to call from many threads.

    Args:
        topology: the teacher's training graph. own: this worker's nodes.
        lists: the teacher's lists, int32 `[n_own_users, top]`. list_of: own node -> its list, int64 `[n_own]`.
        seed: of the run.
    """

    def __init__(
        self,
        topology: Topology,
        own: OwnNodes,
        lists: np.ndarray,
        list_of: np.ndarray,
        config: DistillConfig,
        seed: int,
    ) -> None:
        self.topology, self.own, self.lists, self.list_of = topology, own, lists, list_of
        self.listed = min(config.listed, lists.shape[1])
        self.n_shared = config.negatives
        self.seed = seed
        self._store = LocalStore(topology)
        self._local = threading.local()

    @property
    def store(self) -> LocalStore:
        """Every worker holds all rows."""
        return self._store

    @property
    def round_trips(self) -> int:
        """No neighbours are drawn."""
        return 0

    def sample(self, seeds: SeedEdges, step: int) -> StudentBatch:
        """The batch of a step; draws are hashes of (seed, step, stable ids)."""
        started = time.perf_counter()
        topology = self.topology
        user, item = seeds.user, seeds.item
        own_user = user - self.own.low
        listed_item = np.empty((len(user), self.listed), np.int32)
        draw_ranked(
            step_key(self.seed, STREAM_LISTED, step),
            topology.stable_id[user].astype(np.int64),
            topology.stable_id[item].astype(np.int64),
            self.lists,
            self.list_of[own_user],
            HEAD,
            listed_item,
        )
        shared = np.empty(self.n_shared, np.int64)
        key = step_key(self.seed, STREAM_DISTILL_ITEM, step)
        shared_negatives(key, topology.n_items, topology.n_users, topology.node_id, shared)
        # An entry that is none takes the edge's own item: its score is masked.
        listed_node = np.where(
            listed_item >= 0, topology.node_id[topology.n_users + np.maximum(listed_item, 0)], item[:, None]
        ).astype(np.int64)
        nodes, rows = np.unique(np.concatenate([user, item, listed_node.reshape(-1), shared]), return_inverse=True)
        b, m = len(user), listed_node.size
        return StudentBatch(
            step=step,
            epoch=seeds.epoch,
            global_size=seeds.global_size,
            nodes=nodes,
            user=rows[:b],
            item=rows[b : 2 * b],
            own_user=own_user,
            listed=rows[2 * b : 2 * b + m].reshape(listed_node.shape),
            listed_item=listed_item,
            shared=rows[2 * b + m :],
            shared_item=topology.stable_id[shared].astype(np.int64),
            shared_known=self._known(user, np.full(b, -1, np.int64), shared),
            batch_known=self._known(user, seeds.share, seeds.global_item),
            share=seeds.share,
            share_sizes=seeds.share_sizes,
            column_order=seeds.column_order,
            seconds=time.perf_counter() - started,
        )

    def _known(self, user: np.ndarray, own_column: np.ndarray, columns: np.ndarray) -> np.ndarray:
        head: np.ndarray | None = getattr(self._local, "head", None)
        if head is None:
            head = self._local.head = np.full(self.topology.n_nodes, -1, np.int32)
        return known_columns(user, own_column, columns, head, np.empty(len(columns), np.int32), *self.topology.csc)
