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
