"""Embedding rows and optimizer state, sharded by owner, in host memory or in that of the worker's device.

Host tables are read and moved by the Numba kernels, also where the model is on a GPU: rows then cross over page-locked
memory in both directions. Tables on a GPU are read and moved by torch operations, which no GPU has run yet.

Workers of one host have their host tables in memory that all of them map, where that can be had, and send no rows.

Hot rows are at every worker: the own ones in their place, the others behind the own rows. They are not fetched; every
worker sums their gradients and moves its replica by the same rule, so that replicas stay equal to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distgnn.config import OptimConfig
from distgnn.distributed.device_memory import RowBuffer, host_buffer, host_zeros, move, on_host
from distgnn.distributed.exchange import FetchPlan, part_sizes, plan_fetch, return_rows, send_rows, sum_over_workers
from distgnn.distributed.hot_rows import HotNodes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_rows import OutboxBuffer, OwnerOrder, SharedRows, Source
from distgnn.distributed.traffic import Traffic
from distgnn.kernels.rng import STREAM_INIT, hash2, keyed_normal
from distgnn.kernels.sparse_optimizer import (
    MOST_STAMPS,
    add_repeated,
    collect_rows,
    gather_rows,
    sparse_adagrad,
    sparse_adam,
    sparse_sgd,
)
from distgnn.kernels.threads import share_rows
from distgnn.pages import zeros
from distgnn.types import UserError

_INIT_CHUNK = 1 << 16
_ID_BYTES = 8


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of a minibatch's nodes come from.

    Attributes:
        exchange: of the nodes that are not hot; None where rows are in shared memory, and nobody has asked for it.
        cold: their positions among the nodes, int64 `[m]`; None where no row is hot: all of them.
        hot: positions of the hot nodes, int64 `[k]`. hot_index: which hot nodes they are, int64 `[k]`.
        by_owner: the nodes, where rows are in shared memory.

    All but the lists of `exchange` and `by_owner` are in the memory of the rows.
    """

    exchange: FetchPlan | None
    cold: torch.Tensor | None
    hot: torch.Tensor
    hot_index: torch.Tensor
    by_owner: OwnerOrder | None = None

    def n_remote(self, rank: int) -> int:
        """Rows that worker `rank`, whose plan it is, wants of others."""
        if self.by_owner is not None:
            return self.by_owner.n_remote(rank)
        assert self.exchange is not None
        return self.exchange.n_remote(rank)


class ShardedEmbedding:
    """The rows of a worker's own contiguous node range, replicas of hot rows, and their moments.

    Args:
        node_type, stable_id: of the owned nodes, uint8 and int64 `[n]`: the start is a hash of them.
        dim: d. std: of the normal start. seed: of the run. dtype: of rows and moments.
        optim: lazy Adam, Adagrad or plain SGD. group: of the workers.
        device: the tables' memory, the worker's device or the CPU (the same choice at every worker); None: the
            worker's device.
        low: first node id of the range. hot: the nodes whose rows every worker holds.
        wire: dtype of rows and gradients on the way to and from other workers; None: that of the table.
        transport: of rows between workers: `messages`; `memory`, which all of them map; or `auto`: memory where it can
            be had and serves, which it does not for tables on GPUs, hot rows and a narrower wire.

    Raises:
        UserError: no memory can be shared, and no other transport will do.
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
        *,
        low: int,
        hot: HotNodes | None = None,
        wire: torch.dtype | None = None,
        transport: str = "messages",
    ) -> None:
        self.wire = dtype if wire is None else wire
        self.optim = optim
        self.group = group
        self.low = low
        self.n_own = len(stable_id)
        self.hot = HotNodes.none() if hot is None else hot
        foreign = (self.hot.nodes < low) | (self.hot.nodes >= low + self.n_own)
        hot_row = np.where(foreign, self.n_own + np.cumsum(foreign) - 1, self.hot.nodes - low)
        node_type = np.concatenate([node_type, self.hot.node_type[foreign]])
        stable_id = np.concatenate([stable_id, self.hot.stable_id[foreign]])
        n = len(stable_id)
        device = group.device if device is None else device
        self._shared = None
        if group.size > 1 and transport != "messages" and device.type == "cpu" and self.wire == dtype:
            self._shared = None if len(self.hot.nodes) else SharedRows.of(n, dim, dtype, group)
        if self._shared is not None:
            self._table = torch.from_numpy(self._shared.table[low : low + n])
        elif transport == "memory" and group.size > 1:
            raise UserError(
                "cluster.exchange = 'memory': the workers cannot map each other's memory: they are on several hosts, "
                "in containers apart, or their tables on GPUs; set cluster.exchange = auto"
            )
        else:
            self._table = _table_of_zeros((n, dim), dtype, device)
        key = np.uint64(hash2(np.uint64(seed), STREAM_INIT))
        for start in range(0, n, _INIT_CHUNK):
            stop = min(start + _INIT_CHUNK, n)
            normal = np.empty((stop - start, dim), np.float64)
            keyed_normal(key, node_type[start:stop], stable_id[start:stop], normal)
            self._table[start:stop] = torch.from_numpy(normal * std).to(dtype)
        if self._shared is not None:
            self._shared.use_large_pages()
        self._moments = [_table_of_zeros((n, dim), dtype, device) for _ in range(optim.n_moments())]
        self._hot_row = move(torch.from_numpy(hot_row), self.device)
        self._slot, self._stamp = zeros((n if group.size > 1 else 0,), np.dtype(np.int64)), 0
        self._count = np.arange(0)

    @property
    def device(self) -> torch.device:
        """Where rows and moments are."""
        return self._table.device

    @property
    def shares_memory(self) -> bool:
        """Whether rows are read in memory that all workers map, and not sent."""
        return self._shared is not None

    def gradient_buffer(self) -> RowBuffer:
        """Memory for the gradient of a step's rows, from which it is the least way to their owners."""
        return RowBuffer() if self._shared is None else OutboxBuffer(self._shared)

    @property
    def weight(self) -> torch.Tensor:
        """The worker's own rows `[n, d]`, in place."""
        return self._table[: self.n_own]

    @property
    def moments(self) -> list[torch.Tensor]:
        """The own rows' moments, `[n, d]` each, in place."""
        return [moment[: self.n_own] for moment in self._moments]

    @property
    def n_rows(self) -> int:
        """Rows here: own ones and replicas."""
        return len(self._table)

    def local_rows(self, nodes: np.ndarray) -> np.ndarray:
        """Which row here belongs to each of the nodes, int64 `[n]`; -1 where there is none."""
        row = np.where((nodes >= self.low) & (nodes < self.low + self.n_own), nodes - self.low, -1)
        at = self.hot.find(nodes)
        found = np.flatnonzero(at >= 0)
        row[found] = self._hot_row.cpu().numpy()[at[found]]
        return row

    def put(self, rows: np.ndarray, weight: torch.Tensor, moments: list[torch.Tensor]) -> None:
        """Overwrite rows int64 `[n]` (see `local_rows`) and their moments by host tensors `[n, d]`."""
        target = move(torch.from_numpy(rows), self.device)
        for table, values in zip([self._table, *self._moments], [weight, *moments], strict=True):
            table[target] = move(values.to(table.dtype), self.device)

    def plan(self, nodes: np.ndarray, bounds: np.ndarray, exchange: bool = True) -> RowPlan:
        """Plan to get the rows of distinct node ids int64 `[n]`; a collective.

        Args:
            exchange: whether something beside the rows is to be exchanged by the plan.
        """
        if self._shared is not None:
            none = torch.empty(0, dtype=torch.int64)
            asked = plan_fetch(nodes, bounds, self.group, self.device) if exchange else None
            return RowPlan(asked, None, none, none, OwnerOrder.of(nodes, bounds))
        at = self.hot.find(nodes)
        hot = np.flatnonzero(at >= 0)
        cold = np.flatnonzero(at < 0) if len(self.hot.nodes) else None
        asked = plan_fetch(nodes if cold is None else nodes[cold], bounds, self.group, self.device)
        cold_at, hot_at, index = (
            None if a is None else move(torch.from_numpy(a), self.device) for a in (cold, hot, at[hot])
        )
        assert hot_at is not None and index is not None
        return RowPlan(asked, cold_at, hot_at, index)

    def fetch(self, plan: RowPlan, buffer: RowBuffer | None = None) -> torch.Tensor:
        """The wanted rows `[n, d]` on the worker's device, as a leaf that takes a gradient; a collective.

        Args:
            buffer: the rows may be in its memory, for who needs those of one fetch at a time.
        """
        if self._shared is not None:
            assert plan.by_owner is not None
            rows = self._copies(len(plan.by_owner.nodes), buffer)
            self._shared.read(plan.by_owner, rows.numpy())
            return move(rows, self.group.device).requires_grad_()
        assert plan.exchange is not None
        rows = send_rows(plan.exchange, self._rows(plan.exchange.rows, buffer), self.group, self.wire)
        if plan.cold is not None:
            cold, shape = rows, (len(plan.cold) + len(plan.hot), rows.shape[1])
            if on_host(cold):
                rows = host_buffer(shape, cold.dtype, self.group.device)
            else:
                rows = cold.new_empty(shape)
            rows[plan.cold] = cold
            rows[plan.hot] = self._rows(self._hot_row[plan.hot_index])
        return move(rows, self.group.device).requires_grad_()

    def _rows(self, rows: torch.Tensor, buffer: RowBuffer | None = None) -> torch.Tensor:
        """Copies of rows int64 `[n]` of the table."""
        if not on_host(self._table):
            return self._table.index_select(0, rows)
        copied = self._copies(len(rows), buffer)
        table, index, out = self._table.numpy(), rows.numpy(), copied.numpy()
        share_rows(len(index), torch.get_num_threads(), lambda a, b: gather_rows(table, index[a:b], out[a:b]))
        return copied

    def _copies(self, n: int, buffer: RowBuffer | None) -> torch.Tensor:
        """Host memory for n rows."""
        dim, dtype = self._table.shape[1], self._table.dtype
        if buffer is None or self.group.device.type != "cpu":  # a copy to a GPU may still read the last rows
            return host_buffer((n, dim), dtype, self.group.device)
        return buffer.rows(n, dim, dtype)

    def count(self, plan: RowPlan, traffic: Traffic) -> None:
        """Count what a step exchanges by a plan: ids and rows, then gradients."""
        others = self.group.size - 1
        if not others:
            return
        item, dim = self._table.element_size(), self._table.shape[1]
        n, row_bytes = plan.n_remote(self.group.rank), dim * self.wire.itemsize
        if self._shared is not None:
            traffic.add("rows", n * row_bytes, 1)
            traffic.add("gradients", n * (2 * _ID_BYTES + row_bytes), 1)  # which nodes, and where
            if plan.exchange is not None:
                traffic.add("rows", (others + n) * _ID_BYTES, 2)
            return
        traffic.add("rows", others * _ID_BYTES + n * (_ID_BYTES + row_bytes), 3)  # how many ids, the ids, the rows
        traffic.add("gradients", n * row_bytes, 1)
        n_hot = len(self.hot.nodes)
        if n_hot:
            own = part_sizes(n_hot, self.group.size)[self.group.rank]
            traffic.add("gradients", (n_hot - own + others * own) * (dim + 1) * item, 2)

    def release(self) -> None:
        """Drop rows and moments: the memory is wanted for something else."""
        self._table = self._table.new_empty((0, self._table.shape[1]))
        self._moments.clear()
        self._shared = None

    def apply_gradient(self, plan: RowPlan, grad: torch.Tensor, step: int) -> None:
        """Send the rows' gradients home, sum repeated rows in rank order, and let every touched row move.

        Args:
            grad: `[n, d]` on the worker's device, in the order of the fetch. step: optimizer step from 1.
        """
        grad = move(grad, self.device)
        if self._shared is not None:
            assert plan.by_owner is not None
            sources = self._shared.gradients(plan.by_owner, grad.contiguous().numpy(), self.low)
            self._update_on_host(sources, self._shared.outboxes, step)
            self._shared.moved()
            return
        assert plan.exchange is not None
        rows = plan.exchange.rows
        if plan.cold is None:
            arrived = return_rows(plan.exchange, grad, self.group, self.wire)
        else:
            arrived = return_rows(plan.exchange, grad[plan.cold], self.group, self.wire)
            hot_rows, hot_grad = self._sum_hot(plan, grad)
            rows, arrived = torch.cat([rows, hot_rows]), torch.cat([arrived, hot_grad])
        if on_host(self._table):
            grad_rows = arrived.contiguous().numpy()
            if self.group.size == 1:
                self._move(rows.numpy(), grad_rows, self._positions(len(rows)), None, step)
            else:
                self._update_on_host([Source(rows.numpy(), np.arange(len(rows)))], grad_rows, step)
        else:
            self._update_on_device(rows, arrived, step, self.group.size > 1)

    def _sum_hot(self, plan: RowPlan, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The hot rows that any worker has touched, and the sums of their gradients; a collective.

        A last column tells who was touched: rows move by that and not by a gradient that happens to be 0.
        """
        dim = grad.shape[1]
        own = grad.new_zeros((len(self.hot.nodes), dim + 1))
        own[plan.hot_index, :dim] = grad[plan.hot]
        own[plan.hot_index, dim] = 1
        total = sum_over_workers(own, self.group)
        touched = torch.nonzero(total[:, dim])[:, 0]
        return self._hot_row[touched], total[touched, :dim]

    def _update_on_host(self, sources: list[Source], grad: np.ndarray, step: int) -> None:
        """Sum the gradients of repeated rows, in the order of the sources, and let every row move.

        Args:
            grad: `[g, d]`, what the sources' places refer to; sums of three or more leave parts in it.
        """
        self._stamp += 1
        if self._stamp == MOST_STAMPS:
            self._slot[:], self._stamp = 0, 1
        most = min(sum(len(source.nodes) for source in sources), len(self._slot))
        (rows, at, more), n = np.empty((3, most), np.int64), 0
        for s in sources:
            repeated = np.empty((len(s.nodes), 2), np.int64)
            n, m = collect_rows(s.nodes, s.low, s.places, s.base, self._stamp, self._slot, n, rows, at, more, repeated)
            add_repeated(repeated[:m], grad)
        # A loop for both kinds of rows is slower for each.
        one, several = np.flatnonzero(more[:n] < 0), np.flatnonzero(more[:n] >= 0)
        self._move(rows[one], grad, at[one], None, step)
        self._move(rows[several], grad, at[several], more[several], step)

    def _positions(self, n: int) -> np.ndarray:
        """0 to n - 1."""
        if len(self._count) < n:
            self._count = np.arange(n + n // 8)
        return self._count[:n]

    def _move(
        self, distinct: np.ndarray, grad: np.ndarray, places: np.ndarray, more: np.ndarray | None, step: int
    ) -> None:
        """Move rows int64 `[n]` by the gradients at these places (see `sparse_adam`)."""
        o = self.optim
        table, moments = self._table.numpy(), [m.numpy() for m in self._moments]

        def part(start: int, stop: int) -> None:
            rows, at = distinct[start:stop], places[start:stop]
            also = None if more is None else more[start:stop]
            if o.name == "sgd":
                sparse_sgd(table, rows, grad, at, also, o.lr, o.weight_decay)
            elif o.name == "adagrad":
                sparse_adagrad(table, *moments, rows, grad, at, also, o.lr, o.eps, o.weight_decay)
            else:
                sparse_adam(table, *moments, rows, grad, at, also, step, o.lr, o.beta1, o.beta2, o.eps, o.weight_decay)

        share_rows(len(distinct), torch.get_num_threads(), part)  # distinct rows: no two threads write to one

    def _update_on_device(self, rows: torch.Tensor, grad: torch.Tensor, step: int, repeated: bool) -> None:
        """The same update in torch operations, for tables in device memory."""
        if repeated:
            # A GPU adds in no fixed order: a row that three workers or more have touched may differ in the last bit.
            rows, inverse = torch.unique(rows, return_inverse=True)
            grad = grad.new_zeros((len(rows), grad.shape[1])).index_add_(0, inverse, grad)
        o = self.optim
        table, moments = self._table, self._moments
        weight = table[rows]
        grad = grad + o.weight_decay * weight
        if o.name == "sgd":
            table[rows] = weight - o.lr * grad
        elif o.name == "adagrad":
            squares = moments[0][rows] + grad * grad
            moments[0][rows] = squares
            table[rows] = weight - o.lr * grad / (squares.sqrt() + o.eps)
        else:
            first, second = moments
            m = first[rows] + (1 - o.beta1) * (grad - first[rows])
            v = second[rows] + (1 - o.beta2) * (grad * grad - second[rows])
            first[rows], second[rows] = m, v
            step_size = o.lr * (1 - o.beta2**step) ** 0.5 / (1 - o.beta1**step)
            table[rows] = weight - step_size * m / (v.sqrt() + o.eps)


def _table_of_zeros(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return host_zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
