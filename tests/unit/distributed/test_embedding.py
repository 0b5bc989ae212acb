"""Tables in device memory move as those on the host do: torch operations against the kernels, both on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distgnn.config import OptimConfig
from distgnn.distributed.embedding import ShardedEmbedding
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_rows import Source

N, DIM = 30, 5


def table(optim: OptimConfig, dtype: torch.dtype = torch.float64) -> ShardedEmbedding:
    group = WorkerGroup(0, 2, torch.device("cpu"), None, None, None)
    node_type = (np.arange(N) % 2).astype(np.uint8)
    return ShardedEmbedding(node_type, np.arange(N), DIM, 0.1, 3, dtype, optim, group, low=0)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_both_updates_are_one(name: str, decay: float, repeated: bool) -> None:
    optim = OptimConfig(name=name, lr=0.03, weight_decay=decay)
    host, device = table(optim), table(optim)
    start = host.weight.clone()
    rng = np.random.default_rng(0)
    for step in range(1, 9):
        n = int(rng.integers(0, 20))
        rows = rng.integers(0, N, n) if repeated else rng.permutation(N)[:n]
        grad = rng.normal(size=(n, DIM))
        content = grad.copy()
        host._update_on_host([Source(rows.copy(), np.arange(n))], content, step)
        device._update_on_device(torch.from_numpy(rows), torch.from_numpy(grad), step, repeated)
        for a, b in zip([device.weight, *device.moments], [host.weight, *host.moments], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert len(host.moments) == {"adam": 2, "adagrad": 1, "sgd": 0}[name]
    assert (host.weight - start).abs().max() > 1e-3


def test_float32_updates_agree_to_rounding() -> None:
    optim = OptimConfig(name="adam", lr=0.03)
    host, device = table(optim, torch.float32), table(optim, torch.float32)
    rows = np.array([4, 1, 4, 9])
    grad = np.random.default_rng(1).normal(size=(4, DIM)).astype(np.float32)
    for step in (1, 2, 3):
        content = grad.copy()
        host._update_on_host([Source(rows, np.arange(len(rows)))], content, step)
        device._update_on_device(torch.from_numpy(rows), torch.from_numpy(grad), step, True)
    torch.testing.assert_close(device.weight, host.weight, rtol=1e-5, atol=1e-7)


def test_released_tables_hold_nothing() -> None:
    embedding = table(OptimConfig(name="adam"))
    embedding.release()
    assert embedding.weight.numel() == 0
    assert embedding.moments == []
