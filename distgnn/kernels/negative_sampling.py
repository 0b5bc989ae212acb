"""Negatives that are never the user's own training positives, keyed by what they belong to, not by where they stand."""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, part_of, prefetch, row_bounds
from distgnn.kernels.prefetch import prefetch_lines
from distgnn.kernels.rng import bounded, combine, draw

_ROWS_AHEAD = 4  # whose neighbours are on the way
_NEIGHBORS_AHEAD = 16
_MOST_BYTES = 2048  # of a row that are asked for: what follows in a long one the processor asks for by itself


@njit(nogil=True, cache=True)
def uniform_negatives(
    user,
    item,
    key,
    n_items,
    first_item,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    stable_id,
    node_id,
    out,
):
    """Draw out.shape[1] items for every edge, uniform over the items that the user has no training edge with.

    One draw each: a rank among the allowed items is mapped past the user's sorted positives, so there is no rejection
    loop and no bias. The key is (seed, step) folded with the edge's stable ids.

    Args:
        user, item: node ids, int64 `[b]`. key: uint64. first_item: position of item 0 in `node_id` (n_users).
        out: int64 `[b, K]`, node ids; -1 where the user has every item.
    """
    for i in range(user.shape[0]):
        part = part_of(user[i], offsets)
        begin, end = row_bounds(user[i], part, offsets, indptr_address, like_indptr)
        degree = end - begin
        row = array_at(indices_address[part] + begin * like_indices.itemsize, degree, like_indices)
        edge_key = combine(combine(key, np.uint64(stable_id[user[i]])), np.uint64(stable_id[item[i]]))
        for k in range(out.shape[1]):
            if degree >= n_items:
                out[i, k] = -1
                continue
            rank = np.int64(bounded(draw(edge_key, np.uint64(k)), np.uint64(n_items - degree)))
            low = 0
            high = degree
            while low < high:
                middle = (low + high) >> 1
                if np.int64(stable_id[row[middle]]) - middle <= rank:
                    low = middle + 1
                else:
                    high = middle
            out[i, k] = node_id[first_item + rank + low]


@njit(nogil=True, cache=True)
def shared_negatives(key, n_items, first_item, node_id, out):
    """out[k] = a uniform item's node id, the same for all edges of a step: key is (seed, step)."""
    for k in range(out.shape[0]):
        out[k] = node_id[first_item + np.int64(bounded(draw(key, np.uint64(k)), np.uint64(n_items)))]


@njit(nogil=True, cache=True)
def known_columns(
    user,
    own_column,
    columns,
    column_head,
    column_next,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
):
    """All (row, column) where the column's item is a training positive of the row's user, but for the row's own column.

    Walks each user's row once and looks the items up, which costs the users' degrees and not rows x columns.

    Args:
        user: node ids, int64 `[b]`. own_column: int64 `[b]`, -1 for none. columns: node ids, int64 `[C]`.
        column_head: int32 `[N]` scratch of -1, given back so. column_next: int32 `[C]` scratch.

    Returns:
        int64 `[2, m]`.
    """
    for c in range(columns.shape[0]):
        column_next[c] = column_head[columns[c]]
        column_head[columns[c]] = c
    width = like_indices.itemsize
    head_address = column_head.ctypes.data
    start, degree = np.empty((2, user.shape[0]), np.int64)
    longest = np.int64(0)
    for i in range(user.shape[0]):
        part = part_of(user[i], offsets)
        begin, end = row_bounds(user[i], part, offsets, indptr_address, like_indptr)
        start[i], degree[i] = indices_address[part] + begin * width, end - begin
        longest = max(longest, degree[i])
    met = np.empty(longest, np.int32)
    pairs = np.empty((2, max(16, 4 * user.shape[0])), np.int64)
    n = 0
    for i in range(user.shape[0]):
        coming = min(i + _ROWS_AHEAD, user.shape[0] - 1)
        prefetch_lines(start[coming], min(degree[coming] * width, _MOST_BYTES))
        row = array_at(start[i], degree[i], like_indices)
        n_met = 0
        for e in range(degree[i]):  # a fifth or so are columns: no branch would guess which
            ahead = np.int64(row[min(e + _NEIGHBORS_AHEAD, degree[i] - 1)])
            prefetch(head_address + ahead * column_head.itemsize)
            met[n_met] = column_head[row[e]]
            n_met += np.int64(met[n_met] >= 0)
        for m in range(n_met):
            c = met[m]
            while c >= 0:
                if c != own_column[i]:
                    if n == pairs.shape[1]:
                        grown = np.empty((2, 2 * n), np.int64)
                        grown[:, :n] = pairs
                        pairs = grown
                    pairs[0, n] = i
                    pairs[1, n] = c
                    n += 1
                c = column_next[c]
    for c in range(columns.shape[0]):
        column_head[columns[c]] = -1
    return pairs[:, :n].copy()
