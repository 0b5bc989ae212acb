"""Alias tables and prefix sums of rows' weights (Walker 1977, Vose 1991), in integers: the same on every machine."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# A row of at most SHORT edges takes two words a cell, in the dtype of ids: own id, and threshold with the alias'
# position in its last six bits, - HALF_CELL. A longer row takes all four: threshold - HALF_CELL, own id, the alias' id
# and position.
WORDS = 4
SHORT = 64
SHORT_WORDS = 2
SHORT_MASK = np.int64(SHORT - 1)
UNIT_BITS = 62  # a row's weights sum to at most 2**62 units
_CELL = np.int64(1) << 32
HALF_CELL = np.int64(1) << 31  # a threshold has 32 bits, and ids may be int32


@njit(nogil=True, cache=True)
def build_tables(indptr, indices, weight, entries, sums):
    """Alias tables and prefix sums of all rows of a partition.

    Args:
        indptr: int64 `[n + 1]`. indices: int32 or int64 `[e]`. weight: float32 `[e]`, finite, at least 0.
        entries: `[e * WORDS]` of indices' dtype, written: cells (see `pair_cells`).
        sums: int64 `[e]`, written: units of a row's edges up to each and with it.

    Returns:
        Whether an edge has weight 0.
    """
    longest = 0
    for i in range(indptr.shape[0] - 1):
        longest = max(longest, indptr[i + 1] - indptr[i])
    left = np.empty(longest, np.int64)
    for i in range(indptr.shape[0] - 1):
        begin, end = indptr[i], indptr[i + 1]
        if begin < end:
            sum_units(weight[begin:end], sums[begin:end])
            pair_cells(sums[begin:end], indices[begin:end], left, entries[begin * WORDS : end * WORDS])
    zeros = False
    for e in range(weight.shape[0]):
        zeros |= weight[e] == 0
    return zeros


@njit(nogil=True, cache=True)
def sum_units(weight, sums):
    """Prefix sums of a row's weights float32 `[degree]`, in units of a power of two, into int64 `[degree]`."""
    degree = weight.shape[0]
    largest = 0.0
    for p in range(degree):
        largest = max(largest, np.float64(weight[p]))
    shift = UNIT_BITS - math.frexp(largest)[1]
    while degree > 1:
        shift -= 1
        degree = (degree + 1) >> 1
    total = np.int64(0)
    for p in range(weight.shape[0]):
        if weight[p] > 0:
            total += max(np.int64(1), np.int64(math.ldexp(np.float64(weight[p]), shift)))
        sums[p] = total


@njit(nogil=True, cache=True)
def pair_cells(sums, indices, left, entries):
    """A row's alias table: cell p holds edge p up to a threshold of 2**32, and above it one other edge, its alias.

    A sweep over light edges (at most a cell) and one over heavy ones; in integers, so that it ends with nothing left.

    Args:
        sums: int64 `[degree]`. indices: `[degree]`. left: int64 scratch, `[degree]` at least.
        entries: `[degree * WORDS]`, written; not where the whole row has weight 0. A short row's cells stand close
            together at its start.
    """
    degree = sums.shape[0]
    total = sums[degree - 1]
    if total == 0:
        return
    before = np.int64(0)
    for p in range(degree):  # the differences of rounded sums sum to degree cells
        upto = np.int64(np.float64(sums[p]) / np.float64(total) * np.float64(degree * _CELL))
        left[p] = upto - before
        before = upto
    light = _next_light(left, 0, degree)
    heavy = _next_heavy(left, 0, degree)
    rest = left[heavy] if heavy < degree else _CELL  # of the heavy edge in turn; `left` tells what was light or heavy
    while heavy < degree:
        if rest > _CELL:
            _fill_cell(entries, indices, light, left[light], heavy)
            rest -= _CELL - left[light]
            light = _next_light(left, light + 1, degree)
        else:
            following = _next_heavy(left, heavy + 1, degree)
            _fill_cell(entries, indices, heavy, rest, following)
            if following < degree:
                rest += left[following] - _CELL
            heavy = following
    while light < degree:
        _fill_cell(entries, indices, light, left[light], degree)
        light = _next_light(left, light + 1, degree)


@njit(nogil=True, cache=True, inline="always")
def _next_light(left, p, degree):
    while p < degree and left[p] > _CELL:
        p += 1
    return p


@njit(nogil=True, cache=True, inline="always")
def _next_heavy(left, p, degree):
    while p < degree and left[p] <= _CELL:
        p += 1
    return p


@njit(nogil=True, cache=True, inline="always")
def _fill_cell(entries, indices, p, threshold, alias):
    if threshold == _CELL:  # one more than 32 bits hold: the edge is its own alias
        threshold = np.int64(0)
        alias = p
    if indices.shape[0] <= SHORT:
        entries[SHORT_WORDS * p] = indices[p]
        entries[SHORT_WORDS * p + 1] = (threshold & ~SHORT_MASK | alias) - HALF_CELL
        return
    entries[WORDS * p] = threshold - HALF_CELL
    entries[WORDS * p + 1] = indices[p]
    entries[WORDS * p + 2] = indices[alias]
    entries[WORDS * p + 3] = alias
