"""Neighbour sampling up to a cut-off: only edges with timestamp <= cut-off are drawn, and only they are counted.

`order` holds the positions of each row by (timestamp, position), so that the edges up to a cut-off are a prefix of it,
found by binary search. Floyd's algorithm runs over that prefix without its excluded ranks; no step costs the degree.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, part_of, row_bounds
from distgnn.kernels.neighbor_sampling import past_excluded, pick_positions, pick_table
from distgnn.kernels.rng import combine

COUNTED = (
    32  # rows up to it are counted through: a few cache lines in order cost less than a search that waits for each
)


@njit(nogil=True, cache=True)
def order_by_time(indptr, timestamp, order):
    """Positions of each row by (timestamp, position).

    Args:
        indptr: int64 `[n + 1]`. timestamp: int64 `[e]`. order: integer `[e]`, written.
    """
    for i in range(indptr.shape[0] - 1):
        begin, end = indptr[i], indptr[i + 1]
        ranked = np.argsort(timestamp[begin:end], kind="mergesort")
        for k in range(end - begin):
            order[begin + k] = ranked[k]


@njit(nogil=True, cache=True, inline="always")
def until(timestamp, order, cutoff):
    """How many of a row's edges have timestamp <= cut-off."""
    low = 0
    high = order.shape[0]
    if high <= COUNTED:
        for position in range(high):
            low += timestamp[position] <= cutoff
        return low
    while low < high:
        middle = (low + high) >> 1
        if timestamp[order[middle]] <= cutoff:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, inline="always")
def time_rank(timestamp, order, position):
    """Place of a position in its row's order."""
    wanted = timestamp[position]
    low = 0
    high = order.shape[0] - 1
    while low < high:
        middle = (low + high) >> 1
        other = order[middle]
        if timestamp[other] < wanted or (timestamp[other] == wanted and other < position):
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, inline="always")
def excluded_until(rank, begin, end, eligible):
    """End of the sorted ranks rank[begin:end] that are below `eligible`."""
    low = begin
    high = end
    while low < high:
        middle = (low + high) >> 1
        if rank[middle] < eligible:
            low = middle + 1
        else:
            high = middle
    return low


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
    order_address,
    like_time,
    like_order,
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
        timestamp = array_at(time_address[part] + begin * like_time.itemsize, end - begin, like_time)
        order = array_at(order_address[part] + begin * like_order.itemsize, end - begin, like_order)
        for e in range(excluded_indptr[k], excluded_indptr[k + 1]):
            excluded[e] = time_rank(timestamp, order, excluded[e])
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
    order_address,
    like_time,
    like_order,
    stable_id,
    excluded_row,
    excluded_indptr,
    excluded_rank,
    indptr,
    neighbors,
    degree,
):
    """Draw up to `fanout` in-neighbours of each (node, cut-off) among the edges up to the cut-off.

    Arguments are those of `neighbor_sampling.draw_rows` and:

    Args:
        cutoff: int64 `[n]`, part of the draw's key.
        time_address, order_address: int64 `[P]`; like_time, like_order: empty arrays of the dtypes there.
        excluded_rank: int64, excluded places in each row's order by time, sorted within a row.
        degree: int64 `[n]`, written: edges up to the cut-off that are not excluded.
    """
    edge = indptr[0]
    table = pick_table(fanout)
    picked = np.empty(fanout, np.int64)
    for i in range(nodes.shape[0]):
        node = np.int64(nodes[i])
        part = part_of(node, offsets)
        begin, end = row_bounds(node, part, offsets, indptr_address, like_indptr)
        row = array_at(indices_address[part] + begin * like_indices.itemsize, end - begin, like_indices)
        timestamp = array_at(time_address[part] + begin * like_time.itemsize, end - begin, like_time)
        order = array_at(order_address[part] + begin * like_order.itemsize, end - begin, like_order)
        eligible = until(timestamp, order, cutoff[i])
        first = 0
        last = 0
        if excluded_row[node] >= 0:
            first = excluded_indptr[excluded_row[node]]
            last = excluded_until(excluded_rank, first, excluded_indptr[excluded_row[node] + 1], eligible)
        allowed = eligible - (last - first)
        degree[i] = allowed
        count = min(allowed, fanout)
        if allowed > fanout:
            node_type = np.uint64(1) if node >= offsets[part, 1] else np.uint64(0)
            key = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
            pick_positions(combine(key, np.uint64(cutoff[i])), allowed, fanout, table, i + 1, picked)
        for c in range(count):
            rank = picked[c] if allowed > fanout else c
            neighbors[edge] = row[order[past_excluded(rank, excluded_rank, first, last)]]
            edge += 1
        indptr[i + 1] = edge


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
    order_address,
    like_time,
    like_order,
    excluded_row,
    excluded_indptr,
    excluded_rank,
    degree,
):
    """The degrees that `draw_rows_until` gives, without drawing."""
    for i in range(nodes.shape[0]):
        node = np.int64(nodes[i])
        part = part_of(node, offsets)
        begin, end = row_bounds(node, part, offsets, indptr_address, like_indptr)
        timestamp = array_at(time_address[part] + begin * like_time.itemsize, end - begin, like_time)
        order = array_at(order_address[part] + begin * like_order.itemsize, end - begin, like_order)
        eligible = until(timestamp, order, cutoff[i])
        degree[i] = eligible
        if excluded_row[node] >= 0:
            first = excluded_indptr[excluded_row[node]]
            degree[i] -= excluded_until(excluded_rank, first, excluded_indptr[excluded_row[node] + 1], eligible) - first


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
    order_address,
    like_time,
    like_order,
    time,
):
    """Timestamps at positions of the rows of nodes, all int64 `[b]`."""
    for i in range(node.shape[0]):
        part = part_of(node[i], offsets)
        begin, end = row_bounds(node[i], part, offsets, indptr_address, like_indptr)
        time[i] = array_at(time_address[part] + begin * like_time.itemsize, end - begin, like_time)[position[i]]
