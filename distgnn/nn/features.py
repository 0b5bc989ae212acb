"""A node's features into the space of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from distgnn.distributed.features import NodeFeatures


class FeatureProjection(nn.Module):
    """Adds W f to a node's embedding row: x_v = e_v + W_type f_v, with one W for users and one for items, no bias.

    With standardised features W f starts with the embeddings' own deviation.

    Args:
        widths: f by role, `user` and `item`. dim: d. std: of the embeddings' start.
    """

    def __init__(self, widths: Mapping[str, int], dim: int, std: float) -> None:
        super().__init__()
        linear = {role: nn.Linear(width, dim, bias=False) for role, width in widths.items()}
        for layer in linear.values():
            nn.init.normal_(layer.weight, std=std / layer.in_features**0.5)
        self.linear = nn.ModuleDict(linear)

    def forward(self, x: torch.Tensor, features: NodeFeatures) -> torch.Tensor:
        """`[n, d]` from embedding rows `[n, d]` and the features of the same nodes."""
        at = torch.cat([features[role].at for role in self.linear])
        added = torch.cat([linear(features[role].values) for role, linear in self.linear.items()])
        return x.index_add(0, at, added)
