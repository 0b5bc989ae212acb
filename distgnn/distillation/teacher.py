"""What a worker needs of the teacher: its own nodes' vectors, every item's, and its users' lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from distgnn import storage
from distgnn.distributed.process_group import WorkerGroup
from distgnn.export.reader import read_export
from distgnn.graph import Topology
from distgnn.kernels.ranking import mask_seen
from distgnn.training.inference import OwnNodes
from distgnn.types import USER, UserError


@dataclass(frozen=True)
class Teacher:
    """Vectors as the teacher's run has exported them.

    Attributes:
        own: of this worker's nodes, float32 `[n_own, d]`. items: of all items by stable id, float32 `[n_items, d]`.
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


def load_teacher(run: str, own: OwnNodes) -> Teacher:
    """Read a run's export and keep what a worker needs.

    Raises:
        UserError: no export there or a damaged one.
    """
    export = read_export(run)
    rows = np.empty((len(own.nodes), export.manifest["dim"]), np.float32)
    is_user = own.node_type == USER
    rows[is_user] = export.users.dequantize(own.stable_id[is_user])
    rows[~is_user] = export.items.dequantize(own.stable_id[~is_user])
    items = export.items.dequantize().astype(np.float32)
    facts = (export.manifest[key] for key in ("phase", "model", "content_hash"))
    return Teacher(rows, items, *facts)


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
    columns = torch.from_numpy(items).to(group.device).T.contiguous()
    chunk = max(1, min(1024, (64 << 20) // (4 * n_items)))
    for start in range(0, len(users), chunk):
        stop = min(start + chunk, len(users))
        scores = (torch.from_numpy(users[start:stop]).to(group.device) @ columns).cpu()
        indptr, seen = topology.neighbors(nodes[start:stop])
        if mask_seen(scores.numpy(), column_of, indptr, seen, 0):
            raise UserError("the teacher's vectors are not finite numbers: its training diverged; train it again")
        best, ids = torch.topk(scores.to(group.device), lists.shape[1], dim=1)
        lists[start:stop] = torch.where(torch.isinf(best), -1, ids).cpu().numpy()
    return lists


def memory_bytes(n_own: int, n_own_users: int, n_nodes: int, n_items: int, teacher_dim: int, dim: int, top: int) -> int:
    """Most bytes of a worker: the export while it is read, own and item rows, lists, student rows and moments."""
    export = n_nodes * teacher_dim * 4
    rows = (n_own + 2 * n_items) * teacher_dim * 4
    return export + rows + 4 * n_own_users * top + 12 * n_own * dim + (192 << 20)


def refuse_too_large(needed: int, group: WorkerGroup) -> str:
    """What distilling takes, in words; refused at every worker where it cannot fit."""
    total, available = group.sum_floats([float(needed)])[0], storage.available_memory()
    if total > available:
        raise UserError(
            f"distill: needs up to {storage.gib(int(total))} over the workers, {storage.gib(available)} is free; lower "
            "distill.top or distill.dim, or use fewer workers"
        )
    return f"distill: at most {storage.gib(needed)} a worker"


def as_tensor(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Rows on the worker's device."""
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)


def pick(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of a table `[n, d]` for an index of any shape: `[..., d]`."""
    return F.embedding(index, table)
