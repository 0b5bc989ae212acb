"""Scaled neighbour sums over a block's CSR, forward and backward, serial over rows."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def neighbor_sum(x, source_scale, destination_scale, indptr, indices, out):
    """out[i] = destination_scale[i] * sum over edges (i, j) of source_scale[j] * x[j].

    Args:
        x: float `[n_src, d]`. source_scale: float `[n_src]`. destination_scale: float `[n_dst]`.
        indptr: int64 `[n_dst + 1]`. indices: int32 `[e]`. out: float `[n_dst, d]`, written.
    """
    d = x.shape[1]
    for i in range(out.shape[0]):
        for c in range(d):
            out[i, c] = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            weight = source_scale[j]
            for c in range(d):
                out[i, c] += weight * x[j, c]
        weight = destination_scale[i]
        for c in range(d):
            out[i, c] *= weight


@njit(nogil=True, cache=True)
def neighbor_sum_backward(grad_out, source_scale, destination_scale, indptr, indices, grad_x):
    """Transpose of `neighbor_sum`: adds to grad_x float `[n_src, d]`, which comes zeroed."""
    d = grad_out.shape[1]
    for i in range(grad_out.shape[0]):
        scale = destination_scale[i]
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            weight = scale * source_scale[j]
            for c in range(d):
                grad_x[j, c] += weight * grad_out[i, c]
