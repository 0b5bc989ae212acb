"""Scaled neighbour sums on a block's CSR, differentiable in the source rows."""

from __future__ import annotations

import torch

from distgnn.distributed.device_memory import on_host
from distgnn.kernels import aggregation as kernels
from distgnn.nn.batch import BlockTensors, destinations


class _NeighborSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source_scale, destination_scale, indptr, indices):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(source_scale, destination_scale, indptr, indices)
        ctx.n_src = x.shape[0]
        x = x.detach().contiguous()
        out = x.new_empty((len(indptr) - 1, x.shape[1]))
        if not on_host(x):
            destination = destinations(indptr, indices)
            picked = x.index_select(0, indices) * source_scale[indices.long(), None]
            out.zero_().index_add_(0, destination, picked)
            return out * destination_scale[:, None]
        kernels.neighbor_sum(
            x.numpy(), source_scale.numpy(), destination_scale.numpy(), indptr.numpy(), indices.numpy(), out.numpy()
        )
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        source_scale, destination_scale, indptr, indices = ctx.saved_tensors
        grad_x = grad.new_zeros((ctx.n_src, grad.shape[1]))
        if not on_host(grad):
            destination = destinations(indptr, indices)
            scaled = (grad * destination_scale[:, None]).index_select(0, destination)
            grad_x.index_add_(0, indices.long(), scaled * source_scale[indices.long(), None])
        else:
            kernels.neighbor_sum_backward(
                grad.contiguous().numpy(),
                source_scale.numpy(),
                destination_scale.numpy(),
                indptr.numpy(),
                indices.numpy(),
                grad_x.numpy(),
            )
        return grad_x, None, None, None, None


def neighbor_sum(
    x: torch.Tensor, source_scale: torch.Tensor, destination_scale: torch.Tensor, block: BlockTensors
) -> torch.Tensor:
    """destination_scale[i] * sum over the block's edges (j -> i) of source_scale[j] * x[j].

    Args:
        x: `[n_src, d]`. source_scale: `[n_src]`. destination_scale: `[n_dst]`, all of one float dtype.

    Returns:
        `[n_dst, d]`.
    """
    result: torch.Tensor = _NeighborSum.apply(x, source_scale, destination_scale, block.indptr, block.indices)
    return result


def inverse_or_zero(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0: rows with nothing drawn stay zero."""
    return torch.where(x > 0, 1.0 / x.clamp(min=1), torch.zeros_like(x))
