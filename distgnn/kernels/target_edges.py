"""A step's target edges, to be left out of the draws: where they stand in their endpoints' rows."""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, array_at, part_of, prefetch
from distgnn.kernels.rng import GOLDEN

CHUNK = 64  # binary searches that go on side by side
FILTER_BITS = 16  # bits of the filter for each endpoint, at least


@njit(nogil=True, cache=True, inline="always")
def _filter_place(node, words):
    """Word and bit of a node in a filter of so many words, a power of two."""
    hashed = np.uint64(node) * GOLDEN
    return np.int64((hashed >> np.uint64(38)) & np.uint64(words - 1)), np.uint64(1) << (hashed >> np.uint64(58))


@njit(nogil=True, cache=True, inline="always")
def may_be_endpoint(node, marks):
    """False for most nodes that are no endpoint, true for endpoints: asks a few KiB instead of an array of N.

    Args:
        marks: uint64, a bit for the hash of every endpoint, see `endpoint_filter`; empty: there is none.
    """
    if marks.shape[0] == 0:
        return False
    word, bit = _filter_place(node, marks.shape[0])
    return (marks[word] & bit) != np.uint64(0)


@njit(nogil=True, cache=True)
def endpoint_filter(nodes):
    """A filter for `may_be_endpoint` of nodes int64 `[n]`."""
    words = 1
    while words * 64 < FILTER_BITS * nodes.shape[0]:
        words *= 2
    marks = np.zeros(words if nodes.shape[0] else 0, np.uint64)
    for node in nodes:
        word, bit = _filter_place(node, words)
        marks[word] |= bit
    return marks


@njit(nogil=True, cache=True)
def target_positions(
    user, item, offsets, indptr_address, indices_address, like_indptr, like_indices, stable_id, position
):
    """Position of each user in its item's row, int64 `[B]` (-1 where the edge is not in the graph).

    Rows are ordered by stable id. The searches of a chunk go on in step: each waits twice a probe, for the neighbour
    and for its stable id, and what one waits for the others have prefetched.
    """
    n = item.shape[0]
    width = like_indices.itemsize
    stable_address = stable_id.ctypes.data
    wanted, start, size, low, left, middle = np.empty((6, CHUNK), np.int64)
    for first in range(0, n, CHUNK):
        m = min(CHUNK, n - first)
        for k in range(m):
            part = part_of(item[first + k], offsets)
            start[k] = indices_address[part]
            low[k] = indptr_address[part] + (item[first + k] - offsets[part, 0]) * like_indptr.itemsize
            prefetch(low[k])
            prefetch(stable_address + user[first + k] * stable_id.itemsize)
        longest = np.int64(0)
        for k in range(m):
            bounds = array_at(low[k], 2, like_indptr)
            wanted[k] = stable_id[user[first + k]]
            start[k] += bounds[0] * width
            low[k] = 0
            left[k] = size[k] = bounds[1] - bounds[0]
            longest = max(longest, left[k])
        # The number of neighbours below the wanted one lies in [low, low + left].
        while longest > 0:
            for k in range(m):
                prefetch(start[k] + (low[k] + (left[k] >> 1)) * width)
            for k in range(m):
                if left[k] > 0:
                    middle[k] = array_at(start[k] + (low[k] + (left[k] >> 1)) * width, 1, like_indices)[0]
                    prefetch(stable_address + middle[k] * stable_id.itemsize)
            for k in range(m):
                if left[k] > 0:
                    half = left[k] >> 1
                    below = stable_id[middle[k]] < wanted[k]
                    low[k] += (half + 1) * below
                    left[k] = half - below * (1 - (left[k] & 1))
            longest >>= 1
        for k in range(m):
            position[first + k] = -1
            if low[k] < size[k]:
                found = array_at(start[k] + low[k] * width, 1, like_indices)[0]
                if stable_id[found] == wanted[k]:
                    position[first + k] = low[k]


@njit(nogil=True, cache=True)
def group_by_endpoint(user, item, user_position, item_position, row, nodes, indptr, positions):
    """Both directions of edges, int64 `[B]` each, grouped by their ends.

    Args:
        row: int32 `[N]`, -1 everywhere; written: the group of each end.
        nodes: int64 `[2 B]`, written: the ends, distinct, as they come, the users first.
        indptr: int64 `[2 B + 1]`, written: of the groups. positions: int64 `[2 B]`, written: sorted within a group.

    Returns:
        The number of groups.
    """
    n = user.shape[0]
    address = row.ctypes.data
    n_groups = np.int64(0)
    indptr[0] = 0
    for direction in range(2):
        end = user if direction == 0 else item
        for i in range(n):
            if i + AHEAD < n:
                prefetch(address + end[i + AHEAD] * row.itemsize)
            if row[end[i]] < 0:
                row[end[i]] = n_groups
                nodes[n_groups] = end[i]
                n_groups += 1
                indptr[n_groups] = 0
            indptr[row[end[i]] + 1] += 1
    for group in range(n_groups):
        indptr[group + 1] += indptr[group]
    # Filling a group moves its start to its end, which is where the next one started.
    for direction in range(2):
        end = user if direction == 0 else item
        position = user_position if direction == 0 else item_position
        for i in range(n):
            if i + AHEAD < n:
                prefetch(address + end[i + AHEAD] * row.itemsize)
            group = row[end[i]]
            positions[indptr[group]] = position[i]
            indptr[group] += 1
    for group in range(n_groups, 0, -1):
        indptr[group] = indptr[group - 1]
    indptr[0] = 0
    for group in range(n_groups):
        if indptr[group + 1] - indptr[group] > 1:
            positions[indptr[group] : indptr[group + 1]].sort()
    return n_groups
