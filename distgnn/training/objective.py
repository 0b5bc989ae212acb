"""From a minibatch's vectors to the loss of the configured objective."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from distgnn.config import LossConfig
from distgnn.distributed.device_memory import move
from distgnn.distributed.exchange import all_gather_rows, all_gather_values
from distgnn.distributed.output_board import OutputBoard
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.traffic import Traffic
from distgnn.graph import Topology
from distgnn.losses import (
    ColumnRules,
    alignment,
    bpr,
    in_batch_softmax,
    pair_sum,
    softmax_cross_entropy,
    uniformity_part,
)
from distgnn.types import MiniBatch


def loss_of(
    config: LossConfig,
    batch: MiniBatch,
    user: torch.Tensor,
    item: torch.Tensor,
    topology: Topology,
    group: WorkerGroup,
    traffic: Traffic | None = None,
    board: OutputBoard | None = None,
) -> torch.Tensor:
    """This worker's part of the global loss, tied to the outputs even where the share is empty; may be a collective.

    Args:
        user, item: vectors of the seed users and the seed items.
        traffic: counts what is gathered from other workers. board: where that lies, if not sent.
    """
    device = user.device
    # An empty share takes from no output, and every worker is to have a gradient for all.
    tie = 0.0 if len(batch.share) else 0.0 * (user.sum() + item.sum())
    if config.score_kind() == "cosine":
        user, item = F.normalize(user, dim=1), F.normalize(item, dim=1)
    u = F.embedding(_index(batch.user_index, device), user)
    own = F.embedding(_index(batch.item_index - batch.n_seed_users, device), item)
    traffic = Traffic() if traffic is None else traffic
    if config.name == "directau":
        return _directau(config, batch, u, own, group, traffic, board) + tie
    kind = config.negatives_kind()
    if kind == "in_batch":
        loss = _in_batch(config, batch, u, own, topology, group, board)
        _count_gathered(traffic, batch.global_size, own, group)
        return loss + tie
    positive = (u * own).sum(1)
    assert batch.negative_index is not None
    rows = batch.negative_index - batch.n_seed_users
    if kind == "shared":
        negative = u @ item[_index(rows, device)].T
        valid = torch.ones_like(negative, dtype=torch.bool)
        assert batch.masked is not None
        masked = _index(batch.masked, device)
        valid[masked[0], masked[1]] = False
    else:
        valid = _index(batch.negative_index, device) >= 0
        drawn = item[_index(np.maximum(rows, 0), device)] if len(item) else item.new_zeros((*rows.shape, item.shape[1]))
        negative = (u[:, None, :] * drawn).sum(2)
    if config.name == "bpr":
        return bpr(positive / _temper(config), negative / _temper(config), valid, batch.global_size) + tie
    logits = torch.cat([positive[:, None], negative.masked_fill(~valid, -torch.inf)], 1) / config.temperature
    target = torch.zeros(len(logits), dtype=torch.int64, device=device)
    return softmax_cross_entropy(logits, target, batch.global_size) + tie


def _temper(config: LossConfig) -> float:
    """BPR on plain inner products has no temperature; on cosines it needs one."""
    return config.temperature if config.score_kind() == "cosine" else 1.0


def _in_batch(
    config: LossConfig,
    batch: MiniBatch,
    user: torch.Tensor,
    own: torch.Tensor,
    topology: Topology,
    group: WorkerGroup,
    board: OutputBoard | None,
) -> torch.Tensor:
    """One column for every edge of the global batch, in the order of the step."""
    assert batch.column_order is not None and batch.masked is not None and batch.column_item is not None
    device = user.device
    gathered = all_gather_rows(own, batch.share_sizes.tolist(), group, board)
    order = None if group.size == 1 else _index(batch.column_order, device)
    subtracted = row_time = column_time = None
    if config.logq:
        # An edge drawn uniformly brings its item with probability degree / E (Yi et al. 2019, section 3).
        frequency = topology.degree(batch.column_item) / topology.n_edges
        subtracted = move(torch.from_numpy(np.log(frequency)), device).to(user.dtype)
    if batch.column_time is not None:  # a column of a later edge has aggregated what the row may not see
        assert batch.cutoff is not None
        row_time = _index(batch.cutoff[batch.user_index], device)
        column_time = _index(batch.column_time, device)
    rules = ColumnRules(_index(batch.masked, device), subtracted, row_time, column_time)
    target = _index(batch.share, device)
    return in_batch_softmax(user, gathered, target, rules, config.temperature, batch.global_size, order=order)


def _directau(
    config: LossConfig,
    batch: MiniBatch,
    user: torch.Tensor,
    item: torch.Tensor,
    group: WorkerGroup,
    traffic: Traffic,
    board: OutputBoard | None,
) -> torch.Tensor:
    """Alignment of the share's edges, and uniformity of the global batch's distinct users and items.

    Args:
        user, item: unit vectors of the share's edges `[b, d]`.
    """
    loss = alignment(user, item, batch.global_size)
    picks, counts = _first_rows(batch, group, traffic)
    own = [rows[_index(pick, rows.device)] for rows, pick in zip((user, item), picks, strict=True)]
    sizes = counts.sum(1)
    gathered = all_gather_rows(torch.cat(own), sizes.tolist(), group, board)
    _count_gathered(traffic, int(sizes.sum()), torch.cat(own), group)
    side = np.repeat(np.tile([0, 1], group.size), counts.reshape(-1))  # a worker's users, then its items
    before, n = counts[: group.rank].sum(0), counts.sum(0)
    everyone = [gathered[_index(np.flatnonzero(side == s), gathered.device)] for s in (0, 1)]
    parts = torch.stack([pair_sum(own[s], everyone[s], int(before[s])) for s in (0, 1)])
    totals = all_gather_values(parts.detach()[None], [1] * group.size, group).sum(0)
    if group.size > 1:
        traffic.add("gathered", (group.size - 1) * parts.numel() * parts.element_size(), 1)
    for s in (0, 1):
        loss = loss + config.uniformity / 2 * uniformity_part(parts[s], totals[s], int(n[s]))
    return loss


def _first_rows(batch: MiniBatch, group: WorkerGroup, traffic: Traffic) -> tuple[list[np.ndarray], np.ndarray]:
    """Which of the share's edges stand for their user and which for their item: the first in rank order.

    With time-respecting sampling a node has a vector for each cut-off: the latest edge stands for it, of equally late
    ones the first of the step.

    Returns:
        Rows of the share for users and for items, and how many every worker has, int64 `[W, 2]`.
    """
    columns = [batch.node_of(batch.user_index), batch.node_of(batch.item_index)]
    if batch.cutoff is not None:
        columns += [batch.cutoff[batch.user_index], batch.share]
    edges = np.stack(columns, 1)
    everywhere = all_gather_values(torch.from_numpy(edges), batch.share_sizes.tolist(), group).numpy()
    if group.size > 1:
        traffic.add("gathered", (batch.global_size - len(edges)) * edges.shape[1] * edges.itemsize, 1)
    end = np.cumsum(batch.share_sizes)
    start = int(end[group.rank] - len(edges))
    picks, counts = [], []
    for side in (0, 1):
        first = np.sort(_first_of_each(everywhere[:, side], *everywhere.T[2:]))
        counts.append(np.bincount(np.searchsorted(end, first, side="right"), minlength=group.size))
        picks.append(first[(first >= start) & (first < start + len(edges))] - start)
    return picks, np.stack(counts, 1)


def _first_of_each(node: np.ndarray, time: np.ndarray | None = None, position: np.ndarray | None = None) -> np.ndarray:
    """Rows at which every distinct node stands first; with times, int64: at which it is latest, ties by position."""
    if time is None or position is None:
        return np.unique(node, return_index=True)[1]
    order = np.lexsort((position, ~time, node))  # ~ turns the order of all int64 round
    return order[np.unique(node[order], return_index=True)[1]]


def _count_gathered(traffic: Traffic, n: int, own: torch.Tensor, group: WorkerGroup) -> None:
    """Rows of others among n, and their gradients on the way back."""
    if group.size > 1:
        traffic.add("gathered", 2 * (n - len(own)) * own.shape[1] * own.element_size(), 2)


def _index(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return move(torch.from_numpy(array), device)
