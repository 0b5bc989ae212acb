"""Draws from ranked lists, the head more often: exponential weights, without replacement."""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.rng import combine, draw, unit


@njit(nogil=True, cache=True)
def draw_ranked(key, user, item, lists, row, decay, out):
    """Draw out.shape[1] entries of each edge's list, entry r with weight exp(-r / decay), without replacement.

    By Gumbel top-k (Kool, van Hoof and Welling 2019): log weight plus Gumbel noise, the largest win. The noise of an
    entry is a hash of (key, stable user, stable item, r), so a draw does not depend on who makes it.

    Args:
        key: uint64 of (seed, stream, step). user, item: stable ids of the edges, int64 `[b]`.
        lists: int32 `[n, K]`, best first, -1 after the last. row: int64 `[b]`, each edge's list.
        out: int32 `[b, m]`, m <= K, in the lists' order, -1 where a list has fewer entries.
    """
    length, m = lists.shape[1], out.shape[1]
    score = np.empty(length, np.float64)
    for b in range(out.shape[0]):
        edge_key = combine(combine(key, np.uint64(user[b])), np.uint64(item[b]))
        entries = 0
        while entries < length and lists[row[b], entries] >= 0:
            uniform = unit(draw(edge_key, np.uint64(entries))) + 1e-17
            score[entries] = -entries / decay - np.log(-np.log(uniform))
            entries += 1
        least = -np.inf
        if entries > m:
            least = np.partition(score[:entries], entries - m)[entries - m]
        n = 0
        for r in range(entries):
            if score[r] >= least and n < m:
                out[b, n] = lists[row[b], r]
                n += 1
        out[b, n:] = -1
