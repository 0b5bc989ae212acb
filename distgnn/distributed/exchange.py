"""Rows fetched from, and gradients returned to, the workers that own them: one uneven all_to_all each way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distgnn.distributed.device_memory import host_buffer, move, on_host
from distgnn.distributed.output_board import OutputBoard
from distgnn.distributed.process_group import WorkerGroup
from distgnn.kernels.routing import route_by_owner
from distgnn.timeline import FEATURES, GRADIENTS, HOT, IDS, OUTPUT_GRADIENTS, OUTPUTS, ROWS


@dataclass(frozen=True)
class FetchPlan:
    """Who owns the rows that a worker wants, and who wants the rows that it owns.

    Attributes:
        order: int64 `[n]`, positions of the wanted nodes, grouped by owner in rank order.
        wanted: rows asked of each owner. asked: rows that each worker asks of this one.
        rows: int64 `[sum(asked)]`, node ids asked of this worker less its first node, in rank order.

    `order` and `rows` are in the memory that the rows themselves are in.
    """

    order: torch.Tensor
    wanted: list[int]
    asked: list[int]
    rows: torch.Tensor

    def n_remote(self, rank: int) -> int:
        """Rows that worker `rank`, whose plan it is, wants of others."""
        return sum(self.wanted) - self.wanted[rank]


def plan_fetch(
    nodes: np.ndarray, bounds: np.ndarray, group: WorkerGroup, device: torch.device | None = None
) -> FetchPlan:
    """Tell every owner which of its rows this worker wants; a collective.

    Args:
        nodes: distinct node ids int64 `[n]`. bounds: int64 `[W + 1]` node ranges.
        device: of the rows (the same at every worker); None: the worker's device.
    """
    device = group.device if device is None else device
    if group.size == 1:
        n = len(nodes)
        rows = move(torch.from_numpy(nodes - bounds[0]), device)
        return FetchPlan(move(torch.from_numpy(np.arange(n)), device), [n], [n], rows)
    counts = np.zeros(group.size, np.int64)
    order = np.empty(len(nodes), np.int64)
    route_by_owner(nodes, bounds, counts, order)
    wanted = torch.from_numpy(counts)
    asked = torch.empty_like(wanted)
    with group.watch.collective(IDS):
        dist.all_to_all_single(asked, wanted, group=group.cpu)
        received = torch.empty(int(asked.sum()), dtype=torch.int64)
        dist.all_to_all_single(
            received,
            torch.from_numpy(nodes[order]),
            output_split_sizes=asked.tolist(),
            input_split_sizes=wanted.tolist(),
            group=group.cpu,
        )
    received -= int(bounds[group.rank])
    return FetchPlan(move(torch.from_numpy(order), device), wanted.tolist(), asked.tolist(), move(received, device))


def send_rows(
    plan: FetchPlan, owned_rows: torch.Tensor, group: WorkerGroup, wire: torch.dtype | None = None
) -> torch.Tensor:
    """Answer the plan: owned rows `[sum(asked), d]` go out, the wanted rows `[n, d]` come back in the nodes' order.

    Args:
        wire: dtype that rows for other workers are rounded to on their way; None: their own.
    """
    if group.size == 1:
        return owned_rows
    arrived = _exchange(owned_rows, plan.wanted, plan.asked, group, wire, ROWS)
    if on_host(arrived):
        result = host_buffer(tuple(arrived.shape), arrived.dtype, group.device)
    else:
        result = torch.empty_like(arrived)
    result[plan.order] = arrived
    return result


def return_rows(
    plan: FetchPlan, wanted_rows: torch.Tensor, group: WorkerGroup, wire: torch.dtype | None = None
) -> torch.Tensor:
    """The way back: one row for each wanted node `[n, d]` in, the rows `[sum(asked), d]` for this owner out."""
    if group.size == 1:
        return wanted_rows
    return _exchange(wanted_rows[plan.order], plan.asked, plan.wanted, group, wire, GRADIENTS)


def _exchange(
    rows: torch.Tensor, arriving: list[int], leaving: list[int], group: WorkerGroup, wire: torch.dtype | None, name: str
) -> torch.Tensor:
    """Rows to and from every worker, grouped by rank; this worker's own never lose a bit. `name`: of the event."""
    communicator = group.communicator(rows.device)
    if wire is None or wire == rows.dtype:
        arrived = rows.new_empty((sum(arriving), rows.shape[1]))
        content = rows.contiguous()
        with group.watch.collective(name):
            dist.all_to_all_single(
                arrived, content, output_split_sizes=arriving, input_split_sizes=leaving, group=communicator
            )
        return arrived
    start, own, at = sum(leaving[: group.rank]), leaving[group.rank], sum(arriving[: group.rank])
    sent = torch.cat([rows[:start], rows[start + own :]]).to(wire)
    arrived = sent.new_empty((sum(arriving) - own, rows.shape[1]))
    to_others, from_others = ([0 if r == group.rank else n for r, n in enumerate(s)] for s in (leaving, arriving))
    with group.watch.collective(name):
        dist.all_to_all_single(
            arrived, sent, output_split_sizes=from_others, input_split_sizes=to_others, group=communicator
        )
    widened = arrived.to(rows.dtype)
    return torch.cat([widened[:at], rows[start : start + own], widened[at:]])


def send_values(
    values: torch.Tensor, arriving: list[int], leaving: list[int], group: WorkerGroup, wire: torch.dtype
) -> torch.Tensor:
    """Values `[sum(leaving)]` out, `[sum(arriving)]` in, both in rank order and without gradient; a collective.

    Args:
        arriving, leaving: how many come from, and go to, each worker. wire: dtype on the way to and from the others.
    """
    return _exchange(values[:, None], arriving, leaving, group, wire, FEATURES)[:, 0]


def sum_over_workers(rows: torch.Tensor, group: WorkerGroup) -> torch.Tensor:
    """Sum of every worker's rows `[n, d]`, in rank order and equal to the bit everywhere; a collective.

    Each worker sums its part of the rows and sends it to all: the bytes of an all-reduce, whose order is its own.
    """
    sizes = part_sizes(len(rows), group.size)
    own, communicator = sizes[group.rank], group.communicator(rows.device)
    arrived = rows.new_empty((own * group.size, rows.shape[1]))
    with group.watch.collective(HOT):
        dist.all_to_all_single(
            arrived,
            rows.contiguous(),
            output_split_sizes=[own] * group.size,
            input_split_sizes=sizes,
            group=communicator,
        )
    return _gather(_sum_of_parts(arrived, group.size), sizes, group, communicator, HOT)


def part_sizes(n: int, workers: int) -> list[int]:
    """How many of n rows each worker sums."""
    return [n // workers + (rank < n % workers) for rank in range(workers)]


def _sum_of_parts(rows: torch.Tensor, n_parts: int) -> torch.Tensor:
    """Sum `[n, d]` of n_parts equal parts of rows `[n_parts n, d]`, in their order."""
    first, *others = rows.chunk(n_parts) if len(rows) else [rows]
    for part in others:
        first = first + part
    return first


def _gather(rows: torch.Tensor, sizes: list[int], group: WorkerGroup, communicator: Any, name: str) -> torch.Tensor:
    """Rows of every worker in rank order `[sum(sizes), d]`. `name`: of the event."""
    gathered = rows.new_empty((sum(sizes), rows.shape[1]))
    with group.watch.collective(name):
        dist.all_to_all_single(
            gathered,
            rows.repeat(group.size, 1),
            output_split_sizes=sizes,
            input_split_sizes=[len(rows)] * group.size,
            group=communicator,
        )
    return gathered


class _AllGatherRows(torch.autograd.Function):
    """Uneven all-gather of rows; its backward sends every row's gradient home and sums in rank order."""

    @staticmethod
    def forward(ctx, rows, sizes, group, board):  # type: ignore[no-untyped-def]
        ctx.sizes, ctx.group = sizes, group
        ctx.board = board if board is not None and board.takes(rows, sizes) else None
        rows = rows.detach().contiguous()
        return (
            _gather(rows, sizes, group, group.gather, OUTPUTS) if ctx.board is None else ctx.board.gather(rows, sizes)
        )

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if ctx.board is not None:
            return ctx.board.give_back(grad, ctx.sizes), None, None, None
        own = ctx.sizes[ctx.group.rank]
        arrived = grad.new_empty((own * ctx.group.size, grad.shape[1]))
        with ctx.group.watch.collective(OUTPUT_GRADIENTS):
            dist.all_to_all_single(
                arrived,
                grad.contiguous(),
                output_split_sizes=[own] * ctx.group.size,
                input_split_sizes=ctx.sizes,
                group=ctx.group.gather,
            )
        return _sum_of_parts(arrived, ctx.group.size), None, None, None


def all_gather_values(values: torch.Tensor, sizes: list[int], group: WorkerGroup) -> torch.Tensor:
    """Rows of every worker in rank order `[sum(sizes), c]`, without gradient; a collective."""
    if group.size == 1:
        return values
    return _gather(values, sizes, group, group.communicator(values.device), OUTPUTS)


def all_gather_rows(
    rows: torch.Tensor, sizes: list[int], group: WorkerGroup, board: OutputBoard | None = None
) -> torch.Tensor:
    """Rows of every worker in rank order `[sum(sizes), d]`, with gradient; a collective in both directions.

    Args:
        board: where workers that share memory leave them, if there is room; None: they are sent.
    """
    if group.size == 1:
        return rows
    gathered: torch.Tensor = _AllGatherRows.apply(rows, sizes, group, board)
    return gathered
