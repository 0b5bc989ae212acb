"""The optimizer of the dense parameters: encoder, towers."""

from __future__ import annotations

import torch

from distgnn.config import OptimConfig


def dense_optimizer(model: torch.nn.Module, optim: OptimConfig) -> torch.optim.Optimizer | None:
    """That of the run's kind for what takes gradients; None where nothing does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return None
    lr = optim.dense_lr or optim.lr
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=optim.weight_decay)
    if optim.name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, eps=optim.eps, weight_decay=optim.weight_decay)
    return torch.optim.Adam(
        parameters, lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
    )
