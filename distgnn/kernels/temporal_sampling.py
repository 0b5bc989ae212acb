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
from distgnn.kernels.neighbor_sampling import lower_bound, past_excluded, pick_positions, pick_table, read_each
from distgnn.kernels.rng import combine
from distgnn.kernels.target_edges import may_be_endpoint

CHUNK = 256  # entries that are searched for side by side
CHUNK_EDGES = 4096  # addresses of a chunk's picks: with the entries' numbers they stay in the first cache levels
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


@njit(nogil=True, cache=True)
def _prefix_lengths(
    nodes,
    cutoff,
    start,
    n,
    offsets,
    indptr_address,
    like_indptr,
    time_address,
    fence_address,
    coarse_address,
    time_range,
    part,
    begin,
    end,
    group,
    bound,
):
    """How many edges of entries start, ..., start + n - 1 are up to their cut-offs.

    A pass over the entries for each thing that is waited for, each of which prefetches what the next one reads.

    Args:
        n: at most CHUNK. coarse_address: int64 `[P]`, of every 16th fence.
        part, begin: uint64 and int64 `[CHUNK]`, written: partitions, and where in them the rows begin.
        end: int64 `[CHUNK]`, written: the numbers of edges. group, bound: int64 and as the times `[CHUNK]`, scratch.
    """
    width = time_range.itemsize
    for k in range(n):
        node = np.int64(nodes[start + k])
        p = np.uint64(part_of(node, offsets))
        part[k] = p
        group[k] = indptr_address[p] + (node - offsets[p, 0]) * like_indptr.itemsize
        prefetch(group[k])
    for k in range(n):
        bounds = array_at(group[k], 2, like_indptr)
        begin[k] = bounds[0]
        end[k] = bounds[1]
        bound[k] = min(max(cutoff[start + k], np.int64(time_range[0])), np.int64(time_range[1]))
        # Which 16 fences.
        low = bounds[0] >> (2 * GROUP_BITS)
        high = bounds[1] >> (2 * GROUP_BITS)
        if low < high:
            low = _coarse_group(coarse_address[part[k]], width, low, high, bound[k])
        group[k] = low << GROUP_BITS
        prefetch(fence_address[part[k]] + group[k] * width)
        if width > 4:
            prefetch(fence_address[part[k]] + (group[k] + 8) * width)
    for k in range(n):
        # Which 16 timestamps: the fences of the row alone count.
        low = begin[k] >> GROUP_BITS
        window = _window(low, end[k] >> GROUP_BITS, group[k])
        found = count_up_to(fence_address[part[k]] + group[k] * width, bound[k], window)
        group[k] = (max(low, group[k]) + found) << GROUP_BITS
        prefetch(time_address[part[k]] + group[k] * width)
        if width > 4:
            prefetch(time_address[part[k]] + (group[k] + 8) * width)
    for k in range(n):
        found = count_up_to(time_address[part[k]] + group[k] * width, bound[k], _window(begin[k], end[k], group[k]))
        end[k] = max(group[k] - begin[k], np.int64(0)) + found


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
    edge = indptr[0]
    table = pick_table(fanout)
    picked = np.empty(fanout, np.int64)
    rows = max(1, min(CHUNK, CHUNK_EDGES // fanout))
    address = np.empty(rows * fanout, np.int64)
    part, bound = np.empty(rows, np.uint64), np.empty(rows, time_range.dtype)
    begin, eligible, group = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.int64)
    width = like_indices.itemsize
    stable_address = stable_id.ctypes.data
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        for i in range(start, stop):
            prefetch(stable_address + np.int64(nodes[i]) * stable_id.itemsize)
        _prefix_lengths(
            nodes,
            cutoff,
            start,
            stop - start,
            offsets,
            indptr_address,
            like_indptr,
            time_address,
            fence_address,
            coarse_address,
            time_range,
            part,
            begin,
            eligible,
            group,
            bound,
        )
        drawn = 0
        for i in range(start, stop):
            k = i - start
            node = np.int64(nodes[i])
            first = 0
            last = 0
            if may_be_endpoint(node, excluded_filter) and excluded_row[node] >= 0:
                first = excluded_indptr[excluded_row[node]]
                last = lower_bound(excluded_rank, first, excluded_indptr[excluded_row[node] + 1], eligible[k])
            allowed = eligible[k] - (last - first)
            degree[i] = allowed
            base = neighbor_address[part[k]] + begin[k] * width
            if allowed > fanout:
                node_type = np.uint64(1) if node >= offsets[part[k], 1] else np.uint64(0)
                key = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
                pick_positions(combine(key, np.uint64(cutoff[i])), allowed, fanout, table, i + 1, picked)
                for c in range(fanout):
                    address[drawn] = base + past_excluded(picked[c], excluded_rank, first, last) * width
                    drawn += 1
            else:
                for c in range(allowed):
                    address[drawn] = base + past_excluded(c, excluded_rank, first, last) * width
                    drawn += 1
            indptr[i + 1] = edge + drawn
        read_each(address[:drawn], like_indices, neighbors[edge : edge + drawn])
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
    part, bound = np.empty(CHUNK, np.uint64), np.empty(CHUNK, time_range.dtype)
    begin, eligible, group = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        _prefix_lengths(
            nodes,
            cutoff,
            start,
            stop - start,
            offsets,
            indptr_address,
            like_indptr,
            time_address,
            fence_address,
            coarse_address,
            time_range,
            part,
            begin,
            eligible,
            group,
            bound,
        )
        for i in range(start, stop):
            node = np.int64(nodes[i])
            degree[i] = eligible[i - start]
            if may_be_endpoint(node, excluded_filter) and excluded_row[node] >= 0:
                first = excluded_indptr[excluded_row[node]]
                last = excluded_indptr[excluded_row[node] + 1]
                degree[i] -= lower_bound(excluded_rank, first, last, eligible[i - start]) - first


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
