"""Neighbour sums against dense matrices, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distgnn.distributed.device_memory import RowBuffer
from distgnn.nn.aggregation import inverse_or_zero, neighbor_sum, neighbor_sum_and_own
from distgnn.nn.batch import BlockTensors


def random_block(seed: int, n_dst: int = 5, n_src: int = 9, most: int = 4) -> tuple[BlockTensors, torch.Tensor]:
    """A block (its second destination draws nothing) and its dense 0/1 matrix `[n_dst, n_src]`."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(n_src)[: rng.integers(1, most + 1)] for _ in range(n_dst)]
    rows[1] = rows[1][:0]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    dense = torch.zeros(n_dst, n_src, dtype=torch.float64)
    for i, row in enumerate(rows):
        dense[i, row] = 1
    indices = torch.from_numpy(np.concatenate(rows).astype(np.int32))
    degree, key = torch.full((n_src,), float(most), dtype=torch.float64), torch.zeros(n_src, dtype=torch.int64)
    offsets = torch.from_numpy(indptr)
    return BlockTensors(n_dst, n_src, offsets, indices, degree, offsets.diff().double(), key), dense


def scales(seed: int, block: BlockTensors) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0.5, 2, block.n_src)), torch.from_numpy(rng.uniform(0.5, 2, block.n_dst))


@pytest.mark.parametrize("seed", range(5))
def test_forward_and_backward_are_the_dense_product(seed: int) -> None:
    block, dense = random_block(seed)
    source, destination = scales(seed, block)
    x = torch.randn(block.n_src, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sparse_x, dense_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = neighbor_sum(sparse_x, source, destination, block)
    expected = destination[:, None] * (dense @ (source[:, None] * dense_x))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert (got[1] == 0).all()
    weight = torch.arange(got.numel(), dtype=torch.float64).reshape(got.shape)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(sparse_x.grad, dense_x.grad, rtol=1e-12, atol=1e-14)


def test_gradients_agree_with_differences() -> None:
    block, _ = random_block(7)
    source, destination = scales(7, block)
    x = torch.randn(block.n_src, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: neighbor_sum(rows, source, destination, block), (x,))


@pytest.mark.parametrize("n_own", [0, 3, 9])
def test_own_rows_come_along_and_their_gradients_are_added(n_own: int) -> None:
    block, dense = random_block(4)
    source, destination = scales(4, block)
    x = torch.randn(block.n_src, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sparse_x, dense_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    summed, own = neighbor_sum_and_own(sparse_x, source, destination, block, n_own)
    assert torch.equal(own, x[:n_own])
    (summed.square().sum() + own.pow(3).sum()).backward()
    expected = destination[:, None] * (dense @ (source[:, None] * dense_x))
    (expected.square().sum() + dense_x[:n_own].pow(3).sum()).backward()
    torch.testing.assert_close(sparse_x.grad, dense_x.grad, rtol=1e-12, atol=1e-13)


def test_threads_do_not_change_a_bit() -> None:
    block, _ = random_block(5, n_dst=6000, n_src=9000, most=5)
    source, destination = (s.float() for s in scales(5, block))
    x = torch.randn(block.n_src, 8, generator=torch.Generator().manual_seed(5))

    def both(threads: int) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            rows = x.clone().requires_grad_()
            summed, own = neighbor_sum_and_own(rows, source, destination, block, 100)
            (summed.square().sum() + own.sum()).backward()
        finally:
            torch.set_num_threads(before)
        assert rows.grad is not None
        return summed.detach(), rows.grad

    for one, three in zip(both(1), both(3), strict=True):
        assert torch.equal(one, three)


def test_rows_that_are_not_contiguous_count_the_same() -> None:
    block, _ = random_block(3)
    source, destination = scales(3, block)
    x = torch.randn(2, block.n_src, dtype=torch.float64).T
    torch.testing.assert_close(
        neighbor_sum(x, source, destination, block), neighbor_sum(x.contiguous(), source, destination, block)
    )


def test_a_block_without_destinations_sends_no_gradient() -> None:
    block, _ = random_block(0)
    none = torch.zeros(0, dtype=torch.float64)
    empty = BlockTensors(
        0, block.n_src, torch.zeros(1, dtype=torch.int64), block.indices[:0], block.degree, none, block.node_key
    )
    x = torch.ones(block.n_src, 2, dtype=torch.float64, requires_grad=True)
    out = neighbor_sum(x, torch.ones_like(block.degree), none, empty)
    out.sum().backward()
    assert out.shape == (0, 2)
    assert x.grad is not None and (x.grad == 0).all()


def test_inverse_of_nothing_is_zero() -> None:
    assert inverse_or_zero(torch.tensor([0.0, 1.0, 4.0])).tolist() == [0.0, 1.0, 0.25]


def test_gradients_in_kept_memory_are_the_same() -> None:
    """Blocks of falling and rising size through one buffer, which holds what it held before."""
    buffer = RowBuffer()
    for seed, n_src in enumerate([9, 40, 12, 41]):
        block, _ = random_block(seed, n_src=n_src)
        source, destination = scales(seed, block)
        found = []
        for each in (block, replace(block, gradients=buffer)):
            x = torch.ones(block.n_src, 3, dtype=torch.float64, requires_grad=True)
            summed, own = neighbor_sum_and_own(x, source, destination, each, 2)
            (summed.square().sum() + own.sum()).backward()
            found.append(x.grad)
        assert torch.equal(*found)
    pointer = buffer.rows(1, 3, torch.float64).data_ptr()
    assert found[1].data_ptr() == pointer  # neither new memory nor a copy of it
