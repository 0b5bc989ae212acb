"""Dropout masks belong to (seed, step, site, node, channel), and torch's operations give the kernel's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distgnn.kernels.rng import combine, keyed_keep
from distgnn.nn.batch import dropout_key, node_keys
from distgnn.nn.dropout import KeyedDropout, keep_on_device


def keys(n: int, seed: int = 0) -> torch.Tensor:
    """Node keys with all 64 bits in use, the extreme ones first."""
    drawn = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n, dtype=np.int64)
    drawn[:4] = [0, -1, 2**63 - 1, -(2**63)]
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("step_key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15])
@pytest.mark.parametrize(("p", "dtype"), [(0.2, torch.float32), (0.5, torch.float64), (0.0, torch.float32)])
def test_torch_operations_give_the_bits_of_the_kernel(step_key: int, p: float, dtype: torch.dtype) -> None:
    node_key = keys(300)
    kernel = torch.empty(300, 7, dtype=dtype)
    keyed_keep(np.uint64(step_key), node_key.numpy().view(np.uint64), p, kernel.numpy())
    assert torch.equal(keep_on_device(step_key, node_key, 7, p, dtype), kernel)


def test_rate_and_scale() -> None:
    keep = KeyedDropout(0.3, 0)(torch.ones(4000, 25), keys(4000), dropout_key(1, 2))
    zeros = (keep == 0).double()
    assert abs(zeros.mean().item() - 0.3) < 0.006  # four standard errors of 100,000 draws
    assert (zeros.mean(0) - 0.3).abs().max() < 0.036  # no channel stands out (five standard errors of 4,000)
    torch.testing.assert_close(keep[keep != 0], torch.full_like(keep[keep != 0], 1 / 0.7))


def test_a_mask_follows_its_node_and_not_its_place() -> None:
    x, node_key = torch.ones(50, 16), keys(50)
    dropout = KeyedDropout(0.4, 3)
    whole = dropout(x, node_key, 99)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(dropout(x[order], node_key[order], 99), whole[order])


def test_step_site_and_seed_change_the_mask() -> None:
    x, node_key = torch.ones(50, 16), keys(50)
    masks = [
        KeyedDropout(0.5, site)(x, node_key, dropout_key(seed, step))
        for seed, step, site in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for i in range(4):
        for j in range(i):
            assert 0.4 < (masks[i] == masks[j]).double().mean() < 0.6


def test_nothing_is_dropped_outside_of_training() -> None:
    x = torch.ones(5, 3)
    assert KeyedDropout(0.9, 0).eval()(x, keys(5), 1) is x
    assert KeyedDropout(0.0, 0)(x, keys(5), 1) is x


def test_node_keys_are_the_hash_of_type_and_stable_id() -> None:
    node_type = np.array([0, 1, 0, 1, 0, 1], np.uint8)
    stable = np.array([0, 0, 1, 2**31, 2**62, 5])
    with np.errstate(over="ignore"):
        expected = [
            int(combine(combine(np.uint64(0), np.uint64(t)), np.uint64(s)))
            for t, s in zip(node_type, stable, strict=True)
        ]
    got = node_keys(node_type, stable)
    assert got.dtype == np.int64
    assert got.view(np.uint64).tolist() == expected
    assert len(set(expected)) == 6
