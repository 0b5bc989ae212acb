"""Rows that are to be drawn from by weight, a chunk's at a time, and what is left of a row drawn exactly."""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, array_at, part_of, prefetch
from distgnn.kernels.alias_tables import WORDS
from distgnn.kernels.neighbor_sampling import past_excluded
from distgnn.kernels.rng import bounded_wide, combine, draw

# Columns of a chunk's table of rows.
DEGREE, INDICES, ENTRIES, SUMS, ZEROS, EXCLUDED, EXCLUDED_END = range(7)
WANTED, FIRST, PICKED, PLACE, TRIED, OFFERED = range(7, 13)
COLUMNS = 13


@njit(nogil=True, cache=True, inline="always")
def budget(fanout):
    """Candidates of a row, at most: an exact draw waits for the row's sums some ten times, which nothing hides."""
    return 24 * fanout + 8


@njit(nogil=True, cache=True)
def find_rows(
    nodes,
    fanout,
    hop_key,
    offsets,
    indptr_address,
    indices_address,
    like_indptr,
    like_indices,
    entries_address,
    sums_address,
    has_zeros,
    stable_id,
    excluded_row,
    excluded_indptr,
    rows,
    key,
):
    """Where the rows of nodes `[n]` are and how many neighbours they want, and the keys of those that draw."""
    n = nodes.shape[0]
    bounds_address = np.empty(AHEAD, np.int64)
    parts = np.empty(AHEAD, np.int64)
    width = like_indices.itemsize
    stable_address = stable_id.ctypes.data
    excluded_address = excluded_row.ctypes.data
    for i in range(-AHEAD, n):
        ahead = i + AHEAD
        place = ahead & (AHEAD - 1)
        part = parts[place]
        bounds_of = bounds_address[place]
        if ahead < n:
            coming = np.int64(nodes[ahead])
            owner = part_of(coming, offsets)
            parts[place] = owner
            bounds_address[place] = indptr_address[owner] + (coming - offsets[owner, 0]) * like_indptr.itemsize
            prefetch(bounds_address[place])
            prefetch(stable_address + coming * stable_id.itemsize)
            prefetch(excluded_address + coming * excluded_row.itemsize)
        if i < 0:
            continue
        node = np.int64(nodes[i])
        bounds = array_at(bounds_of, 2, like_indptr)
        begin = bounds[0]
        degree = bounds[1] - begin
        first = 0
        last = 0
        if excluded_row[node] >= 0:
            first = excluded_indptr[excluded_row[node]]
            last = excluded_indptr[excluded_row[node] + 1]
        allowed = degree - (last - first)
        rows[i, DEGREE] = degree
        rows[i, INDICES] = indices_address[part] + begin * width
        rows[i, ENTRIES] = entries_address[part] + begin * width * WORDS
        rows[i, SUMS] = sums_address[part] + begin * 8
        rows[i, ZEROS] = has_zeros[part]
        rows[i, EXCLUDED] = first
        rows[i, EXCLUDED_END] = last
        rows[i, WANTED] = min(allowed, fanout)
        if has_zeros[part] and _units_before(rows[i, SUMS], degree, like_indptr) == 0:
            rows[i, WANTED] = 0
        rows[i, PICKED] = 0
        rows[i, TRIED] = 0
        if allowed > fanout:
            node_type = np.uint64(1) if node >= offsets[part, 1] else np.uint64(0)
            key[i] = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
        else:
            prefetch(rows[i, INDICES])
            prefetch(rows[i, INDICES] + degree * width)


@njit(nogil=True, cache=True)
def take_all(row, excluded, like_indices, like_sums, neighbors):
    """All neighbours of a row that has no more than are wanted, but for excluded ones and those of weight 0."""
    indices = array_at(row[INDICES], row[DEGREE], like_indices)
    n = row[FIRST]
    for rank in range(row[WANTED]):
        p = past_excluded(rank, excluded, row[EXCLUDED], row[EXCLUDED_END])
        if row[ZEROS] and _units(row[SUMS], p, like_sums) == 0:
            continue
        neighbors[n] = indices[p]
        n += 1
    row[PICKED] = n - row[FIRST]


@njit(nogil=True, cache=True, inline="always")
def _units_before(address, p, like):
    return array_at(address + (p - 1) * 8, 1, like)[0] if p > 0 else np.int64(0)


@njit(nogil=True, cache=True, inline="always")
def _units(address, p, like):
    return array_at(address + p * 8, 1, like)[0] - _units_before(address, p, like)


@njit(nogil=True, cache=True)
def draw_the_rest(row, key, fanout, like_indices, like_sums, excluded, picks, neighbors):
    """Draw what a row still wants exactly, as long as something of weight is left.

    Args:
        row: of the chunk's table. picks: int64 `[fanout]`, positions picked so far.
    """
    address, degree = row[SUMS], row[DEGREE]
    begin, end = row[EXCLUDED], row[EXCLUDED_END]
    n = row[PICKED]
    taken = np.empty(row[WANTED], np.int64)
    for c in range(n):
        prefetch(address + picks[c] * 8)
    remaining = _units_before(address, degree, like_sums)
    for e in range(begin, end):
        remaining -= _units(address, excluded[e], like_sums)
    for c in range(n):
        remaining -= _units(address, picks[c], like_sums)
        _insert(taken, c, picks[c])
    indices = array_at(row[INDICES], degree, like_indices)
    while n < row[WANTED] and remaining > 0:
        target = np.int64(bounded_wide(draw(key, np.uint64(budget(fanout) + n)), np.uint64(remaining)))
        p = position_left(target, address, degree, like_sums, taken[:n], excluded[begin:end])
        remaining -= _units(address, p, like_sums)
        _insert(taken, n, p)
        neighbors[row[FIRST] + n] = indices[p]
        n += 1
    row[PICKED] = n


@njit(nogil=True, cache=True)
def _insert(ordered, n, value):
    """Insert into ordered[:n]."""
    while n > 0 and ordered[n - 1] > value:
        ordered[n] = ordered[n - 1]
        n -= 1
    ordered[n] = value


@njit(nogil=True, cache=True)
def position_left(target, address, degree, like_sums, taken, excluded):
    """Position of the edge that holds unit `target` of a row without its taken and excluded positions, both sorted."""
    a = 0
    b = 0
    while a < taken.shape[0] or b < excluded.shape[0]:
        if b == excluded.shape[0] or (a < taken.shape[0] and taken[a] < excluded[b]):
            gone = taken[a]
            a += 1
        else:
            gone = excluded[b]
            b += 1
        if target < _units_before(address, gone, like_sums):
            break
        target += _units(address, gone, like_sums)
    sums = array_at(address, degree, like_sums)
    low = 0
    high = degree - 1
    while low < high:
        middle = (low + high) >> 1
        if sums[middle] <= target:
            low = middle + 1
        else:
            high = middle
    return low
