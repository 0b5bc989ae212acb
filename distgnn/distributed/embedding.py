"""Embedding rows and optimizer state, sharded by owner, in host memory or in that of the worker's device.

Host tables are read and moved by the Numba kernels, also where the model is on a GPU: rows then cross over page-locked
memory in both directions. Tables on a GPU are read and moved by torch operations, which no GPU has run yet.
"""

from __future__ import annotations

import numpy as np
import torch

from distgnn.config import OptimConfig
from distgnn.distributed.device_memory import host_buffer, move, on_host
from distgnn.distributed.exchange import FetchPlan, plan_fetch, return_rows, send_rows
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.traffic import Traffic
from distgnn.kernels.rng import STREAM_INIT, hash2, keyed_normal
from distgnn.kernels.sparse_optimizer import gather_rows, merge_rows, sparse_adagrad, sparse_adam, sparse_sgd

_INIT_CHUNK = 1 << 16
_ID_BYTES = 8


class ShardedEmbedding:
    """The rows of a worker's own contiguous node range, and their moments.

    Args:
        node_type, stable_id: of the owned nodes, uint8 and int64 `[n]`: the start is a hash of them.
        dim: d. std: of the normal start. seed: of the run. dtype: of rows and moments.
        optim: lazy Adam, Adagrad or plain SGD. group: of the workers.
        device: the tables' memory, the worker's device or the CPU (the same choice at every worker); None: the
            worker's device.
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
        device: torch.device | None = None,
    ) -> None:
        self.optim = optim
        self.group = group
        n = len(stable_id)
        self.weight = torch.empty((n, dim), dtype=dtype, device=group.device if device is None else device)
        key = np.uint64(hash2(np.uint64(seed), STREAM_INIT))
        for start in range(0, n, _INIT_CHUNK):
            stop = min(start + _INIT_CHUNK, n)
            normal = np.empty((stop - start, dim), np.float64)
            keyed_normal(key, node_type[start:stop], stable_id[start:stop], normal)
            self.weight[start:stop] = torch.from_numpy(normal * std).to(dtype)
        self.moments = [torch.zeros_like(self.weight) for _ in range(optim.n_moments())]
        self._slot = np.full(n, -1, np.int32)

    @property
    def device(self) -> torch.device:
        """Where rows and moments are."""
        return self.weight.device

    def plan(self, nodes: np.ndarray, bounds: np.ndarray) -> FetchPlan:
        """Plan to fetch the rows of distinct node ids int64 `[n]`; a collective."""
        return plan_fetch(nodes, bounds, self.group, self.device)

    def fetch(self, plan: FetchPlan) -> torch.Tensor:
        """The wanted rows `[n, d]` on the worker's device, as a leaf that takes a gradient; a collective."""
        if on_host(self.weight):
            shape = (len(plan.rows), self.weight.shape[1])
            owned = host_buffer(shape, self.weight.dtype, self.group.device)
            gather_rows(self.weight.numpy(), plan.rows.numpy(), owned.numpy())
        else:
            owned = self.weight.index_select(0, plan.rows)
        return move(send_rows(plan, owned, self.group), self.group.device).requires_grad_()

    def count(self, plan: FetchPlan, traffic: Traffic) -> None:
        """Count what a step exchanges by a plan: ids and rows, then gradients."""
        others = self.group.size - 1
        if not others:
            return
        n, row_bytes = plan.n_remote(self.group.rank), self.weight.shape[1] * self.weight.element_size()
        traffic.add("rows", others * _ID_BYTES + n * (_ID_BYTES + row_bytes), 3)  # how many ids, the ids, the rows
        traffic.add("gradients", n * row_bytes, 1)

    def release(self) -> None:
        """Drop rows and moments: the memory is wanted for something else."""
        self.weight = self.weight.new_empty((0, self.weight.shape[1]))
        self.moments.clear()

    def apply_gradient(self, plan: FetchPlan, grad: torch.Tensor, step: int) -> None:
        """Send the rows' gradients home, sum repeated rows in rank order, and let every touched row move.

        Args:
            grad: `[n, d]` on the worker's device, in the order of the fetch. step: optimizer step from 1.
        """
        arrived = return_rows(plan, move(grad, self.device), self.group)
        repeated = self.group.size > 1
        if on_host(self.weight):
            self._update_on_host(plan.rows.numpy(), arrived.contiguous().numpy(), step, repeated)
        else:
            self._update_on_device(plan.rows, arrived, step, repeated)

    def _update_on_host(self, rows_np: np.ndarray, grad_np: np.ndarray, step: int, repeated: bool) -> None:
        if repeated:
            distinct, merged_np = np.empty_like(rows_np), np.empty_like(grad_np)
            n = merge_rows(rows_np, grad_np, self._slot, distinct, merged_np)
            rows_np, grad_np = distinct[:n], merged_np[:n]
        o = self.optim
        if o.name == "sgd":
            sparse_sgd(self.weight.numpy(), rows_np, grad_np, o.lr, o.weight_decay)
            return
        if o.name == "adagrad":
            squares = self.moments[0].numpy()
            sparse_adagrad(self.weight.numpy(), squares, rows_np, grad_np, o.lr, o.eps, o.weight_decay)
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

    def _update_on_device(self, rows: torch.Tensor, grad: torch.Tensor, step: int, repeated: bool) -> None:
        """The same update in torch operations, for tables in device memory."""
        if repeated:
            # A GPU adds in no fixed order: a row that three workers or more have touched may differ in the last bit.
            rows, inverse = torch.unique(rows, return_inverse=True)
            grad = grad.new_zeros((len(rows), grad.shape[1])).index_add_(0, inverse, grad)
        o = self.optim
        weight = self.weight[rows]
        grad = grad + o.weight_decay * weight
        if o.name == "sgd":
            self.weight[rows] = weight - o.lr * grad
            return
        if o.name == "adagrad":
            squares = self.moments[0][rows] + grad * grad
            self.moments[0][rows] = squares
            self.weight[rows] = weight - o.lr * grad / (squares.sqrt() + o.eps)
            return
        first, second = self.moments
        m = first[rows] + (1 - o.beta1) * (grad - first[rows])
        v = second[rows] + (1 - o.beta2) * (grad * grad - second[rows])
        first[rows], second[rows] = m, v
        step_size = o.lr * (1 - o.beta2**step) ** 0.5 / (1 - o.beta1**step)
        self.weight[rows] = weight - step_size * m / (v.sqrt() + o.eps)
