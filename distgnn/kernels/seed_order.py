"""The order of training edges: a keyed permutation of [0, E), evaluated for a slice and never materialised.

A balanced Feistel network over the smallest even number of bits that holds E, with cycle walking back into [0, E)
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, part_of, prefetch
from distgnn.kernels.rng import combine

ROUNDS = 6


@njit(nogil=True, cache=True)
def permuted_slice(start, n, key, out):
    """out[i] = permutation(start + i) of [0, n), int64; key is a uint64 of (seed, epoch)."""
    half = np.uint64(1)
    while (np.uint64(1) << (half + half)) < np.uint64(n):
        half += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    pending = out.shape[0]
    left, right = np.empty((2, pending), np.uint64)
    place = np.arange(pending)
    for i in range(pending):
        left[i] = np.uint64(start + i) >> half
        right[i] = np.uint64(start + i) & mask
    while pending > 0:
        for r in range(ROUNDS):
            round_key = combine(key, np.uint64(r))
            for i in range(pending):  # several at once: no number asks for another
                mixed = left[i] ^ (combine(round_key, right[i]) & mask)
                left[i] = right[i]
                right[i] = mixed
        beyond = 0
        for i in range(pending):
            x = (left[i] << half) | right[i]
            if x < np.uint64(n):
                out[place[i]] = np.int64(x)
            else:
                left[beyond], right[beyond], place[beyond] = left[i], right[i], place[i]
                beyond += 1
        pending = beyond


@njit(nogil=True, cache=True)
def users_of_edges(edge, user_offsets, node_id, user, position):
    """Users (node ids) of edge ids and the edges' positions in the users' rows, all int64 `[b]`; no row is read.

    Edge e belongs to the last stable user u with user_offsets[u] <= e, at position e - user_offsets[u] of u's row.
    Users without an edge share an offset with the next one: the search ends at the last of them, which has it.
    """
    low = np.zeros(edge.shape[0], np.int64)
    left = user_offsets.shape[0] - 1
    while left > 1:
        half = left >> 1
        # Step by step for all edges: their reads wait for memory together. A mask, as a branch would be a guess.
        for i in range(edge.shape[0]):
            low[i] += half & ~((edge[i] - user_offsets[low[i] + half]) >> 63)
        left -= half
    for i in range(edge.shape[0]):
        position[i] = edge[i] - user_offsets[low[i]]
        user[i] = node_id[low[i]]


@njit(nogil=True, cache=True)
def neighbors_at(node, position, offsets, indptr_address, indices_address, like_indptr, like_indices, neighbor):
    """Neighbours at positions of the rows of nodes, all int64 `[b]`."""
    start = np.empty(node.shape[0], np.int64)
    for i in range(node.shape[0]):
        part = part_of(node[i], offsets)
        start[i] = indptr_address[part] + (node[i] - offsets[part, 0]) * like_indptr.itemsize
        prefetch(start[i])
    for i in range(node.shape[0]):
        first = array_at(start[i], 1, like_indptr)[0]
        start[i] = indices_address[part_of(node[i], offsets)] + (first + position[i]) * like_indices.itemsize
        prefetch(start[i])
    for i in range(node.shape[0]):
        neighbor[i] = array_at(start[i], 1, like_indices)[0]
