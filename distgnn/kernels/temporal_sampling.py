"""Neighbour sampling up to a cut-off: only edges with timestamp <= cut-off are drawn, and only they are counted.

Rows lie a second time in the order of (timestamp, position), so that the edges up to a cut-off are a prefix of the row.
Its length is found in a sorted array of timestamps with fences, every 16th of them again in an array of their own, and
every 256th: whatever the degree, a search waits for one or two cache lines that are not in a cache, and these are
prefetched. Floyd's algorithm runs over the prefix without its excluded ranks; no step costs the degree.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, count_up_to, part_of, prefetch, row_bounds
from distgnn.kernels.neighbor_sampling import lower_bound, past_excluded, pick_positions, pick_table
from distgnn.kernels.rng import combine
from distgnn.kernels.target_edges import may_be_endpoint

BLOCK = 32  # entries, at most, that go from step to step together
BLOCK_EDGES = 512  # neighbours of a block that are on their way, at most: half of the first cache level
RING = 4 * BLOCK
GROUP_BITS = 4  # a group of 16 timestamps, a cache line of int32, ends with a fence; so does a group of 16 fences


@njit(nogil=True, cache=True)
def order_by_time(indptr, indices, timestamp, time, neighbor, place):
    """Each row by (timestamp, position).

    Args:
        indptr: int64 `[n + 1]`. indices: integer `[e]`. timestamp: int64 `[e]`.
        time, neighbor: integer `[e]`, written: the rows' timestamps and indices in this order.
        place: integer `[e]`, written: where in its row's order each position stands.
    """
    for i in range(indptr.shape[0] - 1):
        begin, end = indptr[i], indptr[i + 1]
        ranked = np.argsort(timestamp[begin:end], kind="mergesort")
        for k in range(end - begin):
            time[begin + k] = timestamp[begin + ranked[k]]
            neighbor[begin + k] = indices[begin + ranked[k]]
            place[begin + ranked[k]] = k


@njit(nogil=True, cache=True, inline="always")
def _window(low, high, start):
    """Bits of the places of [low, high) in the 16 from `start` on."""
    return (np.int64(1) << min(high - start, np.int64(16))) - (np.int64(1) << max(low - start, np.int64(0)))


@njit(nogil=True, cache=True)
def _coarse_group(address, width, low, high, bound):
    """Group of fences low, ..., high in which the search ends: the first whose last fence is later than the bound."""
    while high - low > 16:
        middle = (low + high) >> 1
        start = max(middle - 16, np.int64(0))  # sixteen are read, and none behind the last fence is there for sure
        if count_up_to(address + start * width, bound, _window(middle - 1, middle, start)):
            low = middle
        else:
            high = middle
    start = max(high - 16, np.int64(0))
    return low + count_up_to(address + start * width, bound, _window(low, high, start))


@njit(nogil=True, cache=True, inline="always")
def _prefetch_group(address, width):
    prefetch(address)
    if width > 4:
        prefetch(address + 8 * width)


@njit(nogil=True, cache=True)
def _ask_for_bounds(nodes, first, last, offsets, indptr_address, like_indptr, part, group):
    """The first step of a search, of entries first, ..., last - 1: where their rows' bounds are.

    Each step prefetches what the next one reads, and is to be taken some entries ahead of it.

    Args:
        part, group: uint64 and int64 `[RING]`, as those below: an entry's place is its last bits. Written: partitions,
            and addresses of bounds.
    """
    for i in range(first, last):
        node = np.int64(nodes[i])
        p = np.uint64(part_of(node, offsets))
        k = i & (RING - 1)
        part[k] = p
        group[k] = indptr_address[p] + (node - offsets[p, 0]) * like_indptr.itemsize
        prefetch(group[k])


@njit(nogil=True, cache=True)
def _ask_for_fences(
    cutoff, first, last, like_indptr, fence_address, coarse_address, time_range, part, begin, end, group, bound
):
    """The second step: which 16 fences.

    Args:
        begin, end: int64, written: bounds of the rows in their partitions. group: addresses of bounds, then groups.
        bound: of the times' dtype, written: cut-offs.
    """
    width = time_range.itemsize
    for i in range(first, last):
        k = i & (RING - 1)
        bounds = array_at(group[k], 2, like_indptr)
        begin[k] = bounds[0]
        end[k] = bounds[1]
        bound[k] = min(max(cutoff[i], np.int64(time_range[0])), np.int64(time_range[1]))
        low = bounds[0] >> (2 * GROUP_BITS)
        high = bounds[1] >> (2 * GROUP_BITS)
        if low < high:
            low = _coarse_group(coarse_address[part[k]], width, low, high, bound[k])
        group[k] = low << GROUP_BITS
        _prefetch_group(fence_address[part[k]] + group[k] * width, width)


@njit(nogil=True, cache=True)
def _ask_for_times(first, last, time_address, fence_address, time_range, part, begin, end, group, bound):
    """The third step: which 16 timestamps; the fences of the row alone count."""
    width = time_range.itemsize
    for i in range(first, last):
        k = i & (RING - 1)
        low = begin[k] >> GROUP_BITS
        window = _window(low, end[k] >> GROUP_BITS, group[k])
        found = count_up_to(fence_address[part[k]] + group[k] * width, bound[k], window)
        group[k] = (max(low, group[k]) + found) << GROUP_BITS
        _prefetch_group(time_address[part[k]] + group[k] * width, width)


@njit(nogil=True, cache=True, inline="always")
def _length(k, time_address, width, part, begin, end, group, bound):
    """The last step: how many edges of the entry at place k are up to its cut-off."""
    window = _window(begin[k], end[k], group[k])
    found = count_up_to(time_address[part[k]] + group[k] * width, bound[k], window)
    return max(group[k] - begin[k], np.int64(0)) + found


@njit(nogil=True, cache=True)
def rank_excluded(
    rows,
    nodes,
    excluded_indptr,
    excluded,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    time_address,
    fence_address,
    coarse_address,
    neighbor_address,
    place_address,
    time_range,
):
    """Turn excluded positions into places in their rows' order by time, sorted within a row.

    Args:
        rows: int64 `[m]`, which of `nodes` int64 `[n]` to turn: those whose rows are at the addresses.
        excluded_indptr: int64 `[n + 1]`. excluded: int64, positions in, ranks out.
    """
    for k in rows:
        node = nodes[k]
        part = part_of(node, offsets)
        begin, end = row_bounds(node, part, offsets, indptr_address, like_indptr)
        place = array_at(place_address[part] + begin * like_indices.itemsize, end - begin, like_indices)
        for e in range(excluded_indptr[k], excluded_indptr[k + 1]):
            excluded[e] = place[excluded[e]]
        excluded[excluded_indptr[k] : excluded_indptr[k + 1]].sort()


@njit(nogil=True, cache=True, inline="always")
def block_rows(fanout):
    """Entries of a block of draws: a power of two."""
    rows = BLOCK
    while rows > 1 and rows * fanout > BLOCK_EDGES:
        rows >>= 1
    return rows


@njit(nogil=True, cache=True)
def draw_rows_until(
    nodes,
    cutoff,
    fanout,
    hop_key,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    time_address,
    fence_address,
    coarse_address,
    neighbor_address,
    place_address,
    time_range,
    stable_id,
    excluded_row,
    excluded_indptr,
    excluded_rank,
    excluded_filter,
    indptr,
    neighbors,
    degree,
):
    """Draw up to `fanout` in-neighbours of each (node, cut-off) among the edges up to the cut-off.

    Arguments are those of `neighbor_sampling.draw_rows` and:

    Args:
        cutoff: int64 `[n]`, part of the draw's key.
        time_address, fence_address, coarse_address, neighbor_address, place_address: int64 `[P]`, see
            `distgnn.timed_rows.TimedRows`; time_range: least and greatest value of the timestamps' dtype, `[2]`; the
            least is no timestamp.
        excluded_rank: int64, excluded places in each row's order by time, sorted within a row.
        excluded_filter: uint64, see `may_be_endpoint`.
        degree: int64 `[n]`, written: edges up to the cut-off that are not excluded.
    """
    n = nodes.shape[0]
    part, bound = np.empty(RING, np.uint64), np.empty(RING, time_range.dtype)
    begin, end, group = np.empty(RING, np.int64), np.empty(RING, np.int64), np.empty(RING, np.int64)
    table = pick_table(fanout)
    picked = np.empty(fanout, np.int64)
    rows = block_rows(fanout)
    address = np.empty((2, rows * fanout), np.int64)
    width, time_width = like_indices.itemsize, time_range.itemsize
    stable_address = stable_id.ctypes.data
    blocks = (n + rows - 1) // rows
    edge = indptr[0]
    read = edge
    # Blocks take turns: while one is picked from, what four others need is on its way.
    for b in range(-3, blocks + 1):
        first, last = (b + 3) * rows, min((b + 4) * rows, n)
        _ask_for_bounds(nodes, first, last, offsets, indptr_address, like_indptr, part, group)
        for i in range(first, last):
            prefetch(stable_address + np.int64(nodes[i]) * stable_id.itemsize)
        if b >= -2:
            first, last = (b + 2) * rows, min((b + 3) * rows, n)
            _ask_for_fences(
                cutoff,
                first,
                last,
                like_indptr,
                fence_address,
                coarse_address,
                time_range,
                part,
                begin,
                end,
                group,
                bound,
            )
        if b >= -1:
            first, last = (b + 1) * rows, min((b + 2) * rows, n)
            _ask_for_times(first, last, time_address, fence_address, time_range, part, begin, end, group, bound)
        drawn = 0
        some = address[b & 1]
        for i in range(max(b, 0) * rows, min((b + 1) * rows, n)):
            k = i & (RING - 1)
            eligible = _length(k, time_address, time_width, part, begin, end, group, bound)
            node = np.int64(nodes[i])
            gone = 0
            gone_end = 0
            if may_be_endpoint(node, excluded_filter) and excluded_row[node] >= 0:
                gone = excluded_indptr[excluded_row[node]]
                gone_end = lower_bound(excluded_rank, gone, excluded_indptr[excluded_row[node] + 1], eligible)
            allowed = eligible - (gone_end - gone)
            degree[i] = allowed
            count = min(allowed, fanout)
            if allowed > fanout:
                node_type = np.uint64(1) if node >= offsets[part[k], 1] else np.uint64(0)
                key = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
                pick_positions(combine(key, np.uint64(cutoff[i])), allowed, fanout, table, i + 1, picked)
            base = neighbor_address[part[k]] + begin[k] * width
            for c in range(count):
                rank = picked[c] if allowed > fanout else c
                some[drawn + c] = base + past_excluded(rank, excluded_rank, gone, gone_end) * width
                prefetch(some[drawn + c])
            drawn += count
            indptr[i + 1] = edge + drawn
        # The neighbours of the block before.
        some = address[(b + 1) & 1]
        for c in range(edge - read):
            neighbors[read + c] = array_at(some[c], 1, like_indices)[0]
        read = edge
        edge += drawn


@njit(nogil=True, cache=True)
def count_rows_until(
    nodes,
    cutoff,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    time_address,
    fence_address,
    coarse_address,
    neighbor_address,
    place_address,
    time_range,
    excluded_row,
    excluded_indptr,
    excluded_rank,
    excluded_filter,
    degree,
):
    """The degrees that `draw_rows_until` gives, without drawing."""
    n = nodes.shape[0]
    part, bound = np.empty(RING, np.uint64), np.empty(RING, time_range.dtype)
    begin, end, group = np.empty(RING, np.int64), np.empty(RING, np.int64), np.empty(RING, np.int64)
    for b in range(-3, (n + BLOCK - 1) // BLOCK):
        first, last = (b + 3) * BLOCK, min((b + 4) * BLOCK, n)
        _ask_for_bounds(nodes, first, last, offsets, indptr_address, like_indptr, part, group)
        if b >= -2:
            first, last = (b + 2) * BLOCK, min((b + 3) * BLOCK, n)
            _ask_for_fences(
                cutoff,
                first,
                last,
                like_indptr,
                fence_address,
                coarse_address,
                time_range,
                part,
                begin,
                end,
                group,
                bound,
            )
        if b >= -1:
            first, last = (b + 1) * BLOCK, min((b + 2) * BLOCK, n)
            _ask_for_times(first, last, time_address, fence_address, time_range, part, begin, end, group, bound)
        for i in range(max(b, 0) * BLOCK, min((b + 1) * BLOCK, n)):
            k = i & (RING - 1)
            eligible = _length(k, time_address, time_range.itemsize, part, begin, end, group, bound)
            node = np.int64(nodes[i])
            degree[i] = eligible
            if may_be_endpoint(node, excluded_filter) and excluded_row[node] >= 0:
                first = excluded_indptr[excluded_row[node]]
                last = excluded_indptr[excluded_row[node] + 1]
                degree[i] -= lower_bound(excluded_rank, first, last, eligible) - first


@njit(nogil=True, cache=True)
def times_at(
    node,
    position,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    time_address,
    fence_address,
    coarse_address,
    neighbor_address,
    place_address,
    time_range,
    time,
):
    """Timestamps at positions of the rows of nodes, all int64 `[b]`."""
    for i in range(node.shape[0]):
        part = part_of(node[i], offsets)
        begin, end = row_bounds(node[i], part, offsets, indptr_address, like_indptr)
        place = array_at(place_address[part] + begin * like_indices.itemsize, end - begin, like_indices)
        row_time = array_at(time_address[part] + begin * time_range.itemsize, end - begin, time_range)
        time[i] = row_time[place[position[i]]]
