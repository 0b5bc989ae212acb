"""Ordering of node ids by the worker that owns them."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def route_by_owner(nodes, bounds, counts, order):
    """Counting sort of nodes int64 `[n]` by owner: worker w owns [bounds[w], bounds[w + 1]), bounds int64 `[W + 1]`.

    Args:
        counts: int64 `[W]` of 0, written. order: int64 `[n]`, written: order[k] is the k-th node's position in `nodes`.
    """
    workers = counts.shape[0]
    owner = np.empty(nodes.shape[0], np.int32)
    for i in range(nodes.shape[0]):
        rank = np.int32(0)
        for w in range(1, workers):
            rank += np.int32(nodes[i] >= bounds[w])  # no branch: owners come in no order
        owner[i] = rank
        counts[rank] += 1
    start = counts.copy()
    total = 0
    for w in range(workers):
        start[w] = total
        total += counts[w]
    for i in range(nodes.shape[0]):
        order[start[owner[i]]] = i
        start[owner[i]] += 1
