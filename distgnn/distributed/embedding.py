"""Embedding rows and optimizer state, sharded by owner."""

from __future__ import annotations

import numpy as np
import torch

from distgnn.config import OptimConfig
from distgnn.distributed.exchange import FetchPlan, return_rows, send_rows
from distgnn.distributed.process_group import WorkerGroup
from distgnn.kernels.rng import STREAM_INIT, hash2, keyed_normal
from distgnn.kernels.sparse_optimizer import gather_rows, merge_rows, sparse_adam, sparse_sgd

_INIT_CHUNK = 1 << 16


class ShardedEmbedding:
    """The rows of a worker's own contiguous node range, and their moments.

    Args:
        node_type, stable_id: of the owned nodes, uint8 and int64 `[n]`: the start is a hash of them.
        dim: d. std: of the normal start. seed: of the run. dtype: of rows and moments.
        optim: lazy Adam or plain SGD. group: of the workers.
    """

    def __init__(
        self,
        node_type: np.ndarray,
        stable_id: np.ndarray,
        dim: int,
        std: float,
        seed: int,
        dtype: torch.dtype,
        optim: OptimConfig,
        group: WorkerGroup,
    ) -> None:
        self.optim = optim
        self.group = group
        n = len(stable_id)
        self.weight = torch.empty((n, dim), dtype=dtype)
        key = np.uint64(hash2(np.uint64(seed), STREAM_INIT))
        for start in range(0, n, _INIT_CHUNK):
            stop = min(start + _INIT_CHUNK, n)
            normal = np.empty((stop - start, dim), np.float64)
            keyed_normal(key, node_type[start:stop], stable_id[start:stop], normal)
            self.weight[start:stop] = torch.from_numpy(normal * std)
        self.weight = self.weight.to(group.device)
        self.moments = [torch.zeros_like(self.weight) for _ in range(2 if optim.name == "adam" else 0)]
        self._slot = np.full(n, -1, np.int32)

    def fetch(self, plan: FetchPlan) -> torch.Tensor:
        """The wanted rows `[n, d]`, as a leaf that takes a gradient."""
        if self.weight.is_cuda:
            owned = self.weight.index_select(0, plan.rows)
        else:
            owned = torch.empty((len(plan.rows), self.weight.shape[1]), dtype=self.weight.dtype)
            gather_rows(self.weight.numpy(), plan.rows.numpy(), owned.numpy())
        return send_rows(plan, owned, self.group).requires_grad_()

    def apply_gradient(self, plan: FetchPlan, grad: torch.Tensor, step: int) -> None:
        """Send the rows' gradients home, sum repeated rows in rank order, and let every touched row move.

        Args:
            grad: `[n, d]` in the order of the fetch. step: optimizer step from 1.
        """
        arrived = return_rows(plan, grad, self.group)
        if self.weight.is_cuda:
            rows, inverse = torch.unique(plan.rows, return_inverse=True)
            merged = arrived.new_zeros((len(rows), arrived.shape[1])).index_add_(0, inverse, arrived)
            self._move_on_device(rows, merged, step)
            return
        rows_np, grad_np = plan.rows.numpy(), arrived.contiguous().numpy()
        if self.group.size > 1:
            distinct, merged_np = np.empty_like(rows_np), np.empty_like(grad_np)
            n = merge_rows(rows_np, grad_np, self._slot, distinct, merged_np)
            rows_np, grad_np = distinct[:n], merged_np[:n]
        o = self.optim
        if o.name == "sgd":
            sparse_sgd(self.weight.numpy(), rows_np, grad_np, o.lr, o.weight_decay)
            return
        sparse_adam(
            self.weight.numpy(),
            self.moments[0].numpy(),
            self.moments[1].numpy(),
            rows_np,
            grad_np,
            step,
            o.lr,
            o.beta1,
            o.beta2,
            o.eps,
            o.weight_decay,
        )

    def _move_on_device(self, rows: torch.Tensor, grad: torch.Tensor, step: int) -> None:
        """The same update in torch operations (distinct rows), for tables in device memory."""
        o = self.optim
        weight = self.weight[rows]
        grad = grad + o.weight_decay * weight
        if o.name == "sgd":
            self.weight[rows] = weight - o.lr * grad
            return
        first, second = self.moments
        m = first[rows] + (1 - o.beta1) * (grad - first[rows])
        v = second[rows] + (1 - o.beta2) * (grad * grad - second[rows])
        first[rows], second[rows] = m, v
        step_size = o.lr * (1 - o.beta2**step) ** 0.5 / (1 - o.beta1**step)
        self.weight[rows] = weight - step_size * m / (v.sqrt() + o.eps)
