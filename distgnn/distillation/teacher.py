"""What a worker needs of the teacher: its own nodes' vectors, every item's, and its users' lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distgnn.distributed.device_memory import move
from distgnn.distributed.process_group import WorkerGroup
from distgnn.export.reader import Export, read_export
from distgnn.graph import Topology
from distgnn.kernels.ranking import mask_seen
from distgnn.training.inference import OwnNodes
from distgnn.types import USER, UserError

_CHUNKS_BYTES = 192 << 20  # of scores while lists are made


@dataclass(frozen=True)
class Teacher:
    """Vectors as the teacher's run has exported them.

    Attributes:
        own: of this worker's nodes, as exported: float32 or float64 `[n_own, d]`.
        items: of all items by stable id, float32 `[n_items, d]`.
        phase: of the teacher's training: fit or full. model: its encoder. content_hash: of its export.
    """

    own: np.ndarray
    items: np.ndarray
    phase: str
    model: str
    content_hash: str

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.own.shape[1]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as exported."""
        return self.dim * self.own.itemsize


def load_teacher(run: str, own: OwnNodes) -> Teacher:
    """Read a run's export and keep what a worker needs.

    Raises:
        UserError: no export there or a damaged one.
    """
    export = read_export(run)
    items = export.items.dequantize().astype(np.float32)
    facts = (export.manifest[key] for key in ("phase", "model", "content_hash"))
    return Teacher(own_rows(export, own), items, *facts)


def own_rows(export: Export, own: OwnNodes) -> np.ndarray:
    """Vectors of a worker's own nodes, floating point `[n_own, d]`."""
    is_user = own.node_type == USER
    users = export.users.dequantize(own.stable_id[is_user])
    rows = np.empty((len(own.nodes), users.shape[1]), users.dtype)
    rows[is_user] = users
    rows[~is_user] = export.items.dequantize(own.stable_id[~is_user])
    return rows


def top_lists(
    users: np.ndarray, nodes: np.ndarray, items: np.ndarray, topology: Topology, top: int, group: WorkerGroup
) -> np.ndarray:
    """The teacher's best items of each user, without those that the user has; int32 `[n, top]`, -1 after the last.

    Args:
        users: vectors float32 `[n, d]`. nodes: their node ids int64 `[n]`. items: float32 `[n_items, d]`.
        top: at most the number of items.
    """
    n_items = len(items)
    lists = np.full((len(users), min(top, n_items)), -1, np.int32)
    column_of = np.arange(n_items, dtype=np.int32)
    columns = move(torch.from_numpy(items), group.device).T.contiguous()
    chunk = max(1, min(1024, _CHUNKS_BYTES // 3 // (4 * n_items)))  # on the host, on a GPU, and in the sort
    for start in range(0, len(users), chunk):
        stop = min(start + chunk, len(users))
        scores = (move(torch.from_numpy(users[start:stop]), group.device) @ columns).cpu()
        indptr, seen = topology.neighbors(nodes[start:stop])
        if mask_seen(scores.numpy(), column_of, indptr, seen, 0):
            raise UserError("the teacher's vectors are not finite numbers: its training diverged; train it again")
        best, ids = torch.topk(move(scores, group.device), lists.shape[1], dim=1)
        lists[start:stop] = torch.where(torch.isinf(best), -1, ids).cpu().numpy()
    return lists


def memory_bytes(n_own: int, n_own_users: int, n_nodes: int, n_items: int, row_bytes: int, dim: int, top: int) -> int:
    """Most bytes of a worker: the export while it is read, own and item rows, lists, student rows and moments.

    Args:
        row_bytes: of a row of the teacher. dim: the student's width. top: of the lists.
    """
    teacher = (n_nodes + n_own + 2 * n_items) * row_bytes
    return teacher + 4 * n_own_users * top + 12 * n_own * dim + _CHUNKS_BYTES
