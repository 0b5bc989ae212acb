"""Scaled neighbour sums on a block's CSR, differentiable in the source rows."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from distgnn.distributed.device_memory import on_host
from distgnn.kernels import aggregation as kernels
from distgnn.kernels.threads import share_rows
from distgnn.nn.batch import BlockTensors, destinations


def _sum_on_host(
    x: np.ndarray,
    source_scale: np.ndarray,
    destination_scale: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    out: np.ndarray,
) -> None:
    def part(start: int, stop: int) -> None:
        span = slice(start, stop)
        kernels.neighbor_sum(x, source_scale, destination_scale[span], indptr[start : stop + 1], indices, out[span])

    share_rows(len(out), torch.get_num_threads(), part)


def _sum_backward_on_host(
    grad_out: np.ndarray,
    grad_own: np.ndarray,
    source_scale: np.ndarray,
    destination_scale: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    grad: np.ndarray,
) -> None:
    source_indptr = np.empty(len(grad) + 1, np.int64)
    by_source = np.empty(len(indices), np.int32)
    kernels.transpose_block(indptr, indices, source_indptr, by_source)

    def part(start: int, stop: int) -> None:
        kernels.neighbor_sum_backward(
            grad_out, grad_own, source_scale, destination_scale, source_indptr, by_source, start, grad[start:stop]
        )

    share_rows(len(grad), torch.get_num_threads(), part)


class _NeighborSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source_scale, destination_scale, indptr, indices, n_own, gradients):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(source_scale, destination_scale, indptr, indices)
        ctx.n_src, ctx.gradients = x.shape[0], gradients
        x = x.detach().contiguous()
        own = x[:n_own]
        if not on_host(x):
            destination = destinations(indptr, indices)
            picked = x.index_select(0, indices) * source_scale[indices.long(), None]
            out = x.new_zeros((len(indptr) - 1, x.shape[1])).index_add_(0, destination, picked)
            return out * destination_scale[:, None], own
        out = x.new_empty((len(indptr) - 1, x.shape[1]))
        _sum_on_host(
            x.numpy(), source_scale.numpy(), destination_scale.numpy(), indptr.numpy(), indices.numpy(), out.numpy()
        )
        return out, own

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_own):  # type: ignore[no-untyped-def]
        source_scale, destination_scale, indptr, indices = ctx.saved_tensors
        if not on_host(grad):
            grad_x = grad.new_zeros((ctx.n_src, grad.shape[1]))
            grad_x[: len(grad_own)] = grad_own
            destination = destinations(indptr, indices)
            scaled = (grad * destination_scale[:, None]).index_select(0, destination)
            grad_x.index_add_(0, indices.long(), scaled * source_scale[indices.long(), None])
        else:
            if ctx.gradients is None:
                grad_x = grad.new_empty((ctx.n_src, grad.shape[1]))
            else:
                grad_x = ctx.gradients.rows(ctx.n_src, grad.shape[1], grad.dtype)
            _sum_backward_on_host(
                grad.contiguous().numpy(),
                grad_own.contiguous().numpy(),
                source_scale.numpy(),
                destination_scale.numpy(),
                indptr.numpy(),
                indices.numpy(),
                grad_x.numpy(),
            )
        return grad_x, None, None, None, None, None, None


def neighbor_sum_and_own(
    x: torch.Tensor, source_scale: torch.Tensor, destination_scale: torch.Tensor, block: BlockTensors, n_own: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`neighbor_sum`, and the first `n_own` rows of x (a view): taken here, both gradients of x are one pass.

    Slicing x outside costs a zeroed tensor of x's size in the backward, and another to add it.

    Returns:
        `[n_dst, d]` and `[n_own, d]`.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _NeighborSum.apply(
        x, source_scale, destination_scale, block.indptr, block.indices, n_own, block.gradients
    )
    return result


def neighbor_sum(
    x: torch.Tensor, source_scale: torch.Tensor, destination_scale: torch.Tensor, block: BlockTensors
) -> torch.Tensor:
    """destination_scale[i] * sum over the block's edges (j -> i) of source_scale[j] * x[j].

    Args:
        x: `[n_src, d]`. source_scale: `[n_src]`. destination_scale: `[n_dst]`, all of one float dtype.

    Returns:
        `[n_dst, d]`.
    """
    return neighbor_sum_and_own(x, source_scale, destination_scale, block, 0)[0]


def inverse_or_zero(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0: rows with nothing drawn stay zero."""
    return torch.where(x > 0, 1.0 / x.clamp(min=1), torch.zeros_like(x))
