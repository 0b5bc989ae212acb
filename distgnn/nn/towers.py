"""Deep towers on the encoder's rows, one for users and one for items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distgnn.nn.dropout import KeyedDropout
from distgnn.nn.linear import Linear

_FIRST_SITE = 1000  # tower dropouts are told apart from the encoder's


class MLPTower(nn.Module):
    """Linear, LayerNorm, GELU and dropout for each hidden width, then a linear map to `out_dim`.

    LayerNorm and not BatchNorm: a batch's statistics would depend on how it is shared out.
    """

    def __init__(self, in_dim: int, hidden: tuple[int, ...], out_dim: int, dropout: float, site: int) -> None:
        super().__init__()
        widths = [in_dim, *hidden]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.linear = nn.ModuleList(Linear(a, b) for a, b in pairs)
        self.norm = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs)
        self.dropout = nn.ModuleList(KeyedDropout(dropout, site + i) for i in range(len(pairs)))
        self.out = Linear(widths[-1], out_dim)

    def forward(self, x: torch.Tensor, node_key: torch.Tensor, step_key: int) -> torch.Tensor:
        """`[n, out_dim]` from `[n, in_dim]`."""
        for linear, norm, dropout in zip(self.linear, self.norm, self.dropout, strict=True):
            x = dropout(F.gelu(norm(linear(x))), node_key, step_key)
        result: torch.Tensor = self.out(x)
        return result


class IdentityTower(nn.Module):
    """Rows as they come."""

    def forward(self, x: torch.Tensor, node_key: torch.Tensor, step_key: int) -> torch.Tensor:
        """X itself."""
        return x


def make_tower(name: str, in_dim: int, hidden: tuple[int, ...], out_dim: int, dropout: float, index: int) -> nn.Module:
    """Identity or mlp; `index` 0 for users, 1 for items."""
    if name == "identity":
        return IdentityTower()
    return MLPTower(in_dim, hidden, out_dim, dropout, _FIRST_SITE * (index + 1))
