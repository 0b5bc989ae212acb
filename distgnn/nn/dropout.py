"""Dropout whose mask is a hash of (seed, step, site, node type, stable id, channel), the same on any worker."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from distgnn.distributed.device_memory import on_host
from distgnn.kernels.rng import combine, keyed_keep

_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on int64 bits (torch has no uint64 arithmetic; int64 wraps the same way)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def keep_on_device(key: int, node_key: torch.Tensor, channels: int, p: float, dtype: torch.dtype) -> torch.Tensor:
    """The kernel `keyed_keep` in torch operations, bit for bit, for tensors on a GPU: `[n, channels]`."""
    signed = key - (1 << 64) if key >= 1 << 63 else key
    row = _mix64((node_key ^ signed) + _GOLDEN)
    channel = torch.arange(1, channels + 1, device=node_key.device) * _GOLDEN
    uniform = _shift_right(_mix64(row[:, None] + channel[None, :]), 11).double() / 9007199254740992.0
    return (uniform >= p).to(dtype) * (1.0 / (1.0 - p))


class KeyedDropout(nn.Module):
    """Zeroes channels with probability p while training.

    Args:
        p: probability. site: number that tells the model's dropouts apart.
    """

    def __init__(self, p: float, site: int) -> None:
        super().__init__()
        self.p = p
        self.site = site

    def forward(self, x: torch.Tensor, node_key: torch.Tensor, step_key: int) -> torch.Tensor:
        """X `[n, c]`, node_key int64 `[n]` (uint64 bits), step_key uint64 of (seed, step)."""
        if not self.training or self.p == 0.0:
            return x
        key = int(combine(np.uint64(step_key), np.uint64(self.site)))
        if not on_host(x):
            return x * keep_on_device(key, node_key, x.shape[1], self.p, x.dtype)
        keep = torch.empty(x.shape, dtype=x.dtype)
        keyed_keep(np.uint64(key), node_key.numpy().view(np.uint64), self.p, keep.numpy())
        return x * keep
