"""Sums over the neighbours of every node: what a step of a walk over the whole graph needs."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def add_neighbor_terms(indptr, indices, term, total):
    """Add to every row's total the terms of its neighbours, in the order of the row.

    Args:
        indptr: int64 `[n + 1]`, offsets of the rows.
        indices: integer `[e]`, node ids of the neighbours.
        term: float64 `[N]`, by node id.
        total: float64 `[n]`, added to.
    """
    for row in range(indptr.shape[0] - 1):
        found = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            found += term[indices[e]]
        total[row] += found
