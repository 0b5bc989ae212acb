"""From a minibatch's vectors to the loss of the configured objective."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from distgnn.config import LossConfig
from distgnn.distributed.device_memory import move
from distgnn.distributed.exchange import all_gather_rows
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.losses import bpr, softmax_cross_entropy
from distgnn.types import MiniBatch


def loss_of(
    config: LossConfig,
    batch: MiniBatch,
    user: torch.Tensor,
    item: torch.Tensor,
    topology: Topology,
    group: WorkerGroup,
) -> torch.Tensor:
    """This worker's part of the global loss, tied to all outputs even where the share is empty; may be a collective.

    Args:
        user, item: vectors of the seed users and the seed items.
    """
    device = user.device
    tie = 0.0 * (user.sum() + item.sum())
    if config.score_kind() == "cosine":
        user, item = F.normalize(user, dim=1), F.normalize(item, dim=1)
    u = user[_index(batch.user_index, device)]
    own = item[_index(batch.item_index - batch.n_seed_users, device)]
    kind = config.negatives_kind()
    if kind == "in_batch":
        logits, target = _in_batch_logits(config, batch, u, own, topology, group)
        return softmax_cross_entropy(logits, target, batch.global_size) + tie
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


def _in_batch_logits(
    config: LossConfig,
    batch: MiniBatch,
    user: torch.Tensor,
    own: torch.Tensor,
    topology: Topology,
    group: WorkerGroup,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One column for every edge of the global batch, in the order of the step."""
    assert batch.column_order is not None and batch.masked is not None and batch.column_item is not None
    gathered = all_gather_rows(own, batch.share_sizes.tolist(), group)
    columns = gathered[_index(batch.column_order, user.device)]
    logits = user @ columns.T / config.temperature
    if config.logq:
        # An edge drawn uniformly brings its item with probability degree / E (Yi et al. 2019, section 3).
        frequency = topology.degree(batch.column_item) / topology.n_edges
        logits = logits - move(torch.from_numpy(np.log(frequency)), user.device).to(logits.dtype)
    masked = _index(batch.masked, user.device)
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=user.device)
    mask[masked[0], masked[1]] = True
    return logits.masked_fill(mask, -torch.inf), _index(batch.share, user.device)


def _index(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return move(torch.from_numpy(array), device)
