"""Who owns what: node ids by partition, and partitions by worker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.types import UserError


def relabel(part: np.ndarray, n_users: int, n_parts: int) -> PartitionBook:
    """Give node ids: partition by partition its users, then its items, each by ascending stable id.

    Args:
        part: partition of every stable user, then of every stable item, integer `[N]`.
        n_users: number of users.
        n_parts: number of partitions.
    """
    n_nodes = len(part)
    dtype = id_dtype(n_nodes)
    order = np.argsort(part, kind="stable")
    node_id = np.empty(n_nodes, dtype)
    node_id[order] = np.arange(n_nodes, dtype=dtype)
    size = np.bincount(part, minlength=n_parts)
    users = np.bincount(part[:n_users], minlength=n_parts)
    end = np.cumsum(size)
    offsets = np.stack([end - size, end - size + users, end], axis=1).astype(np.int64)
    return PartitionBook(offsets, np.where(order < n_users, order, order - n_users).astype(dtype), node_id)


def id_dtype(n_nodes: int) -> type[np.signedinteger]:
    """int32 where it can hold every node id, else int64."""
    return np.int32 if n_nodes < 2**31 else np.int64


@dataclass(frozen=True)
class PartitionBook:
    """The relabelling.

    Attributes:
        offsets: int64 `[P, 3]`, (user start, item start, end) of each partition's node ids.
        stable_id: integer `[N]`, node id -> stable id within its type.
        node_id: integer `[N]`, stable users' node ids, then stable items'.
    """

    offsets: np.ndarray
    stable_id: np.ndarray
    node_id: np.ndarray

    @property
    def n_parts(self) -> int:
        """P."""
        return len(self.offsets)

    @property
    def n_nodes(self) -> int:
        """N."""
        return int(self.offsets[-1, 2])

    @property
    def n_users(self) -> int:
        """Users of all partitions."""
        return int((self.offsets[:, 1] - self.offsets[:, 0]).sum())

    @property
    def n_items(self) -> int:
        """Items of all partitions."""
        return self.n_nodes - self.n_users

    def part_of(self, nodes: np.ndarray) -> np.ndarray:
        """Partition of nodes int64 `[n]`, int64 `[n]`."""
        return np.searchsorted(self.offsets[:, 2], nodes, side="right")

    def worker_parts(self, rank: int, workers: int) -> range:
        """Partitions of a worker: r P // W ... (r + 1) P // W - 1."""
        return range(rank * self.n_parts // workers, (rank + 1) * self.n_parts // workers)

    def worker_bounds(self, workers: int) -> np.ndarray:
        """Node ranges of the workers, those of their partitions (see `worker_parts`).

        Returns:
            int64 `[W + 1]`: worker r owns the node ids in [bounds[r], bounds[r + 1]).

        Raises:
            UserError: fewer partitions than workers.
        """
        if not 1 <= workers <= self.n_parts:
            raise UserError(
                f"cluster.workers = {workers}, but the graph has {self.n_parts} partitions and every worker needs one:"
                f" lower cluster.workers or prepare with partition.parts = {workers}"
            )
        starts = np.append(self.offsets[:, 0], self.n_nodes)
        return starts[[*(self.worker_parts(rank, workers).start for rank in range(workers)), self.n_parts]]
