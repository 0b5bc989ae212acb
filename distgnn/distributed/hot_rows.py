"""Which rows every worker holds: those of the nodes that have most edges, and so are asked for most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from distgnn import beat
from distgnn.distributed.process_group import WorkerGroup


@dataclass(frozen=True)
class HotNodes:
    """The same at every worker.

    Attributes:
        nodes: node ids int64 `[H]`, ascending. node_type, stable_id: of them, uint8 and int64.
    """

    nodes: np.ndarray
    node_type: np.ndarray
    stable_id: np.ndarray

    @classmethod
    def none(cls) -> HotNodes:
        """No such row."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64))

    def find(self, nodes: np.ndarray) -> np.ndarray:
        """Positions int64 `[n]` of nodes int64 `[n]` among the hot ones, -1 for others."""
        if not len(self.nodes):
            return np.full(len(nodes), -1)
        at = np.minimum(np.searchsorted(self.nodes, nodes), len(self.nodes) - 1)
        return np.where(self.nodes[at] == nodes, at, -1)


def hot_nodes(
    n_hot: int, low: int, node_type: np.ndarray, stable_id: np.ndarray, degree: np.ndarray, group: WorkerGroup
) -> HotNodes:
    """The `n_hot` nodes of the highest degree over all workers, ties by type and stable id; a collective.

    Replicas are of use to several workers alone: one worker has none.

    Args:
        n_hot: H, at most the number of nodes. low: first node id of the worker's own range.
        node_type, stable_id, degree: of its nodes, `[n]`.
    """
    if group.size == 1 or n_hot == 0:
        return HotNodes.none()
    best = np.lexsort((stable_id, node_type, -degree))[:n_hot]
    columns = [degree[best], node_type[best], stable_id[best], low + best]
    candidates = _all_gather(np.stack([c.astype(np.int64) for c in columns], 1), group)
    chosen = candidates[np.lexsort((candidates[:, 2], candidates[:, 1], -candidates[:, 0]))[:n_hot]]
    chosen = chosen[np.argsort(chosen[:, 3])]
    return HotNodes(chosen[:, 3].copy(), chosen[:, 1].astype(np.uint8), chosen[:, 2].copy())


def _all_gather(rows: np.ndarray, group: WorkerGroup) -> np.ndarray:
    """int64 rows `[n, c]` of all workers in rank order."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size)]
    with beat.waiting():
        dist.all_gather(counts, torch.tensor([len(rows)]), group=group.cpu)
    padded = torch.zeros((max(int(c) for c in counts), rows.shape[1]), dtype=torch.int64)
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in counts]
    with beat.waiting():
        dist.all_gather(parts, padded, group=group.cpu)
    return np.concatenate([part[: int(n)].numpy() for part, n in zip(parts, counts, strict=True)])
