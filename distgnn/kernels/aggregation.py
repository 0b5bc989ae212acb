"""Scaled neighbour sums over a block's CSR, and their gradient over its transpose.

Every output row is summed by one loop in a fixed order, so that the caller may share rows out to threads and nothing
depends on how. The sources of a block are too many for the caches: each row is asked for some edges before its turn.
"""

from __future__ import annotations

from numba import njit

from distgnn.kernels.prefetch import prefetch_row

_AHEAD = 24  # edges


@njit(nogil=True, cache=True)
def neighbor_sum(x, source_scale, destination_scale, indptr, indices, out):
    """out[i] = destination_scale[i] * sum over edges (i, j) of source_scale[j] * x[j].

    Args:
        x: float `[n_src, d]`. source_scale: float `[n_src]`. destination_scale: float `[n_dst]`.
        indptr: int64 `[n_dst + 1]`; may be a slice of a longer one, offsets are into `indices`. indices: int32 `[e]`.
        out: float `[n_dst, d]`, written.
    """
    d = x.shape[1]
    n_dst = out.shape[0]
    last = indptr[n_dst]
    for i in range(n_dst):
        total = out[i]
        for c in range(d):
            total[c] = 0
        for e in range(indptr[i], indptr[i + 1]):
            if e + _AHEAD < last:
                prefetch_row(x, indices[e + _AHEAD])
            j = indices[e]
            source = x[j]
            weight = source_scale[j]
            for c in range(d):
                total[c] += weight * source[c]
        weight = destination_scale[i]
        for c in range(d):
            total[c] *= weight


@njit(nogil=True, cache=True)
def transpose_block(indptr, indices, source_indptr, destinations):
    """The edges of a block by source, destinations ascending within each: a counting sort.

    Args:
        indptr: int64 `[n_dst + 1]`. indices: int32 `[e]`.
        source_indptr: int64 `[n_src + 1]`, written. destinations: int32 `[e]`, written.
    """
    source_indptr[:] = 0
    for e in range(indices.shape[0]):
        source_indptr[indices[e] + 1] += 1
    total = 0
    for j in range(1, source_indptr.shape[0]):  # now the start of row j - 1 at j, which filling moves to its end
        count = source_indptr[j]
        source_indptr[j] = total
        total += count
    for i in range(indptr.shape[0] - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e] + 1
            destinations[source_indptr[j]] = i
            source_indptr[j] += 1


@njit(nogil=True, cache=True)
def neighbor_sum_backward(
    grad_out, grad_own, source_scale, destination_scale, source_indptr, destinations, first, grad
):
    """grad[k] = grad_own[j] + source_scale[j] * sum over edges (i, j) of destination_scale[i] * grad_out[i].

    j is first + k: rows may be shared out.

    Args:
        grad_out: float `[n_dst, d]`. grad_own: float `[m, d]` of the first m sources; 0 for the others.
        source_scale: float `[n_src]`. destination_scale: float `[n_dst]`.
        source_indptr, destinations: of `transpose_block`. grad: float `[r, d]`, written.
    """
    d = grad_out.shape[1]
    last = source_indptr[first + grad.shape[0]]
    for k in range(grad.shape[0]):
        j = first + k
        total = grad[k]
        for c in range(d):
            total[c] = 0
        for e in range(source_indptr[j], source_indptr[j + 1]):
            if e + _AHEAD < last:
                prefetch_row(grad_out, destinations[e + _AHEAD])
            i = destinations[e]
            gradient = grad_out[i]
            weight = destination_scale[i]
            for c in range(d):
                total[c] += weight * gradient[c]
        weight = source_scale[j]
        if j < grad_own.shape[0]:
            own = grad_own[j]
            for c in range(d):
                total[c] = total[c] * weight + own[c]
        else:
            for c in range(d):
                total[c] *= weight
