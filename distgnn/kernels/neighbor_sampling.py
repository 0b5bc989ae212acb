"""Uniform neighbour sampling without replacement, with target edges excluded inside the pick.

Floyd's algorithm (Bentley and Floyd 1987, "A sample of brilliance"): k of n in k draws, independent of n, so popular
items do not cost their degree. Draw j is from [0, j] inclusive. With k excluded positions in a row of degree d it runs
over the d - k allowed ranks, and a rank is mapped past the excluded positions, so the fanout stays full.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, array_at, part_of, prefetch
from distgnn.kernels.rng import bounded, combine, draw

CHUNK_EDGES = 4096  # addresses of a chunk of rows: with the rows themselves within the second cache level
LINEAR_SCAN = 32  # fanouts up to it look for a repeated pick by a scan, larger ones in a hash table


@njit(nogil=True, cache=True, inline="always")
def lower_bound(ascending, begin, end, value):
    """First place of ascending[begin:end] that is not below a value; `end` where there is none."""
    low = begin
    high = end
    while low < high:
        middle = (low + high) >> 1
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, inline="always")
def past_excluded(rank, excluded, begin, end):
    """Position of the rank-th element that is not among the sorted positions excluded[begin:end]."""
    low = begin
    high = end
    while low < high:
        middle = (low + high) >> 1
        if excluded[middle] - (middle - begin) <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + (low - begin)


@njit(nogil=True, cache=True)
def pick_positions(key, allowed, fanout, table, generation, picked):
    """Floyd's draw of `fanout` of `allowed` ranks (fanout < allowed) into picked int64 `[fanout]`.

    Args:
        key: uint64 of (seed, step, hop, node type, stable id[, cut-off]).
        table: int64 `[2, power of two >= 4 * fanout]`, (generation, rank) slots; used above LINEAR_SCAN only.
        generation: int64, larger than in any earlier call with this table.
    """
    if fanout > LINEAR_SCAN:
        _pick_with_table(key, allowed, fanout, table, generation, picked)
        return
    least = np.uint64(allowed - fanout)
    for n in range(fanout):  # by themselves: the compiler makes several at once
        picked[n] = np.int64(bounded(draw(key, np.uint64(n)), least + np.uint64(n + 1)))
    seen = np.uint64(0)
    if allowed <= 64:  # a bit for each rank, and no branch to guess: in short rows repetitions are common
        for n in range(fanout):
            rank = np.uint64(picked[n])
            repeated = (seen >> rank) & np.uint64(1)
            rank += repeated * (least + np.uint64(n) - rank)
            seen |= np.uint64(1) << rank
            picked[n] = np.int64(rank)
        return
    # A bit for the last six of each rank: most repetitions are ruled out without a scan.
    for n in range(fanout):
        rank = picked[n]
        bit = np.uint64(1) << np.uint64(rank & 63)
        if seen & bit:
            for i in range(n):
                if picked[i] == rank:
                    rank = allowed - fanout + n
                    bit = np.uint64(1) << np.uint64(rank & 63)
                    break
        seen |= bit
        picked[n] = rank


@njit(nogil=True, cache=True)
def _pick_with_table(key, allowed, fanout, table, generation, picked):
    n = 0
    mask = table.shape[1] - 1
    for j in range(allowed - fanout, allowed):
        rank = np.int64(bounded(draw(key, np.uint64(n)), np.uint64(j + 1)))
        for _ in range(2):  # at most twice: j itself cannot have been picked before
            slot = (rank * 0x9E3779B1) & mask
            repeated = False
            while table[0, slot] == generation:
                if table[1, slot] == rank:
                    repeated = True
                    break
                slot = (slot + 1) & mask
            if not repeated:
                table[0, slot] = generation
                table[1, slot] = rank
                break
            rank = j
        picked[n] = rank
        n += 1


@njit(nogil=True, cache=True)
def pick_table(fanout):
    """A table for `pick_positions`, int64 `[2, size]`; at its least where it is not used."""
    size = 8
    while fanout > LINEAR_SCAN and size < 4 * fanout:
        size *= 2
    return np.zeros((2, size), np.int64)


@njit(nogil=True, cache=True)
def draw_rows(
    nodes,
    fanout,
    hop_key,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    stable_id,
    excluded_row,
    excluded_indptr,
    excluded_position,
    indptr,
    neighbors,
):
    """Draw up to `fanout` in-neighbours of each node.

    A draw waits for memory twice: for the bounds of the row, and for the neighbour. Both are prefetched: picking from a
    chunk of rows leaves addresses, and the neighbours are then read one after the other.

    Args:
        nodes: integer `[n]`, node ids whose rows are at the addresses. hop_key: uint64 of (seed, step, hop).
        offsets: int64 `[P, 3]` (user start, item start, end). indptr_address, indices_address: int64 `[P]`.
        like_indptr, like_indices: empty arrays that carry the dtypes at the addresses.
        stable_id: integer `[N]`.
        excluded_row: int32 `[N]`, row in excluded_indptr of an endpoint of a target edge, else -1.
        excluded_indptr, excluded_position: int64, sorted positions to leave out of each such row.
        indptr: int64 `[n + 1]`, the first entry given, the others written.
        neighbors: integer, room for the draws from indptr[0] on; written: the neighbours' node ids.
    """
    n = nodes.shape[0]
    edge = indptr[0]
    table = pick_table(fanout)
    picked = np.empty(fanout, np.int64)
    rows = max(1, CHUNK_EDGES // fanout)
    address = np.empty(min(n, rows) * fanout if fanout < CHUNK_EDGES else 0, np.int64)
    bounds_address = np.empty(AHEAD, np.int64)  # of the next rows' bounds, where their indices start, and their types
    base_address = np.empty(AHEAD, np.int64)
    types = np.empty(AHEAD, np.uint64)
    width = like_indices.itemsize
    stable_address = stable_id.ctypes.data
    excluded_address = excluded_row.ctypes.data
    for i in range(-AHEAD, n):
        ahead = i + AHEAD
        place = ahead & (AHEAD - 1)
        if i >= 0:
            node = np.int64(nodes[i])
            bounds = array_at(bounds_address[place], 2, like_indptr)
            begin = bounds[0]
            degree = bounds[1] - begin
            start = base_address[place] + begin * width
            node_type = types[place]
        if ahead < n:
            coming = np.int64(nodes[ahead])
            part = part_of(coming, offsets)
            bounds_address[place] = indptr_address[part] + (coming - offsets[part, 0]) * like_indptr.itemsize
            base_address[place] = indices_address[part]
            types[place] = np.uint64(1) if coming >= offsets[part, 1] else np.uint64(0)
            prefetch(bounds_address[place])
            prefetch(stable_address + coming * stable_id.itemsize)
            prefetch(excluded_address + coming * excluded_row.itemsize)
        if i < 0:
            continue
        excluded_begin = 0
        excluded_end = 0
        if excluded_row[node] >= 0:
            excluded_begin = excluded_indptr[excluded_row[node]]
            excluded_end = excluded_indptr[excluded_row[node] + 1]
        allowed = degree - (excluded_end - excluded_begin)
        count = min(allowed, fanout)
        if allowed > fanout:
            key = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
            pick_positions(key, allowed, fanout, table, i + 1, picked)
        if address.shape[0] == 0:  # long rows: they are read at once
            row = array_at(start, degree, like_indices)
            for c in range(count):
                rank = picked[c] if allowed > fanout else c
                neighbors[edge + c] = row[past_excluded(rank, excluded_position, excluded_begin, excluded_end)]
        else:
            first = edge - indptr[i - i % rows]
            for c in range(count):
                rank = picked[c] if allowed > fanout else c
                position = past_excluded(rank, excluded_position, excluded_begin, excluded_end)
                address[first + c] = start + position * width
        edge += count
        indptr[i + 1] = edge
        if address.shape[0] > 0 and (i % rows == rows - 1 or i == n - 1):
            first = indptr[i - i % rows]
            read_each(address[: edge - first], like_indices, neighbors[first:edge])


@njit(nogil=True, cache=True)
def read_each(address, like, values):
    """Values `[n]` at addresses int64 `[n]`, of like's dtype there."""
    n = address.shape[0]
    for k in range(n):
        if k + AHEAD < n:
            prefetch(address[k + AHEAD])
        values[k] = array_at(address[k], 1, like)[0]


@njit(nogil=True, cache=True)
def count_draws(nodes, fanout, facts, excluded_row, excluded_indptr, indptr):
    """What `draw_rows` puts into indptr int64 `[n + 1]`, without the rows: facts are `Topology.facts`."""
    n = nodes.shape[0]
    facts_address = facts.ctypes.data
    excluded_address = excluded_row.ctypes.data
    indptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            ahead = np.int64(nodes[i + AHEAD])
            prefetch(facts_address + ahead * 2 * facts.itemsize)
            prefetch(excluded_address + ahead * excluded_row.itemsize)
        node = nodes[i]
        allowed = np.int64(facts[node, 1])
        if excluded_row[node] >= 0:
            allowed -= excluded_indptr[excluded_row[node] + 1] - excluded_indptr[excluded_row[node]]
        indptr[i + 1] = indptr[i] + min(allowed, fanout)


@njit(nogil=True, cache=True)
def place_rows(order, drawn, indptr, neighbors):
    """Put rows drawn one after the other, integer, at their places: the k-th is that of node order[k], int64 `[m]`."""
    edge = 0
    for k in range(order.shape[0]):
        for place in range(indptr[order[k]], indptr[order[k] + 1]):
            neighbors[place] = drawn[edge]
            edge += 1


@njit(nogil=True, cache=True)
def position_in_row(row, stable_id, wanted):
    """Position of the neighbour with stable id `wanted` in a row sorted by stable id, or -1."""
    low = 0
    high = row.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if stable_id[row[middle]] < wanted:
            low = middle + 1
        else:
            high = middle
    if low < row.shape[0] and stable_id[row[low]] == wanted:
        return low
    return -1
