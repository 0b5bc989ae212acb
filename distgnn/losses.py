"""Training objectives: every one is a sum over the worker's share divided by the global batch size.

So gradients are summed over workers, and no factor W stands anywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bpr(positive: torch.Tensor, negative: torch.Tensor, valid: torch.Tensor, global_size: int) -> torch.Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): mean over negatives of softplus(negative - positive).

    Args:
        positive: scores `[b]`. negative: scores `[b, K]`. valid: bool `[b, K]`, false where there is no such negative.
    """
    each = F.softplus(negative - positive[:, None]) * valid
    return (each.sum(1) / valid.sum(1).clamp(min=1)).sum() / global_size


def softmax_cross_entropy(logits: torch.Tensor, target: torch.Tensor, global_size: int) -> torch.Tensor:
    """Sampled softmax (Bengio and Senecal 2008): -log softmax of the target's column.

    Args:
        logits: `[b, C]`, -inf where masked. target: int64 `[b]`.
    """
    return F.cross_entropy(logits, target, reduction="sum") / global_size


def alignment(user: torch.Tensor, item: torch.Tensor, global_size: int) -> torch.Tensor:
    """DirectAU's first part (Wang et al. 2022, eq. 4): mean squared distance of the edges' unit vectors `[b, d]`."""
    return (user - item).square().sum() / global_size


def pair_sum(own: torch.Tensor, everyone: torch.Tensor, first: int) -> torch.Tensor:
    """Sum of exp(-2 |x - y|^2) over the pairs of an own row and another row.

    Args:
        own: `[m, d]`, which are rows `first` to `first + m` of everyone. everyone: `[n, d]`.
    """
    distance = own.square().sum(1)[:, None] + everyone.square().sum(1)[None, :] - 2 * (own @ everyone.T)
    itself = torch.zeros(distance.shape, dtype=torch.bool, device=own.device)
    itself.diagonal(first).fill_(True)
    return torch.exp(-2 * distance).masked_fill(itself, 0.0).sum()


def uniformity_part(part: torch.Tensor, total: torch.Tensor, n: int) -> torch.Tensor:
    """This worker's part of log mean exp(-2 |x - y|^2) over the pairs of n distinct rows (Wang et al. 2022, eq. 5).

    A logarithm of a sum has no parts: values are split as the sums are, and every gradient is divided by the whole sum,
    so that values and gradients add up to the whole over the workers.

    Args:
        part: its `pair_sum`. total: over all workers, without gradient. n: rows; a single one is in no pair.
    """
    if n < 2:
        return 0.0 * part
    value = part.detach() / total * torch.log(total / (n * (n - 1)))
    return value + (part - part.detach()) / total
