"""Draws by weight from rows of at most 64 edges: a word of bits tells which positions are gone.

The law and its two ways are those of `weighted_sampling`. A row's cells are a few lines that are asked for together, so
that candidates need no rounds; a hash makes two of them. What they leave is drawn from running sums of what is left,
which are compared with the drawn unit all at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, prefetch
from distgnn.kernels.alias_tables import HALF_CELL, SHORT, SHORT_MASK, SHORT_WORDS
from distgnn.kernels.prefetch import prefetch_lines
from distgnn.kernels.rng import bounded_wide, draw
from distgnn.kernels.weighted_rows import (
    DEGREE,
    ENTRIES,
    EXCLUDED,
    EXCLUDED_END,
    FIRST,
    PICKED,
    SUMS,
    WANTED,
)

ROWS_AHEAD = 16  # whose lines are on the way: a first cache level has room for as many
_LOW_32, _S32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_ONE = np.uint64(1)


@njit(nogil=True, cache=True, inline="always")
def short_budget(fanout):
    """Hashes of a row for candidates, at most, two of them each: an exact draw costs as much as some six candidates."""
    return 2 * fanout + 4


@njit(nogil=True, cache=True)
def draw_short_rows(rows, key, short, fanout, like_indices, like_sums, excluded, neighbors):
    """Draw for the rows `short` int64 `[m]` of a chunk's table, which is overwritten.

    Args:
        key: uint64, of each row of the table. excluded: int64, sorted positions to leave out.
        neighbors: integer, written.
    """
    n = short.shape[0]
    gone = np.empty(n, np.uint64)
    picks = np.empty(SHORT + 1, np.int64)
    width = like_indices.itemsize * SHORT_WORDS
    unfinished = 0
    for k in range(-ROWS_AHEAD, n):
        if k + ROWS_AHEAD < n:
            coming = short[k + ROWS_AHEAD]
            _prefetch_span(rows[coming, ENTRIES], rows[coming, DEGREE] * width)
        if k < 0:
            continue
        r = short[k]
        gone[unfinished] = _look(rows, r, key[r], short_budget(fanout), like_indices, excluded, picks, neighbors)
        if rows[r, PICKED] < rows[r, WANTED]:
            short[unfinished] = r
            unfinished += 1
    left = np.empty(SHORT, np.int64)
    for k in range(-ROWS_AHEAD, unfinished):
        if k + ROWS_AHEAD < unfinished:
            coming = short[k + ROWS_AHEAD]
            _prefetch_span(rows[coming, SUMS], rows[coming, DEGREE] * 8)
        if k >= 0:
            r = short[k]
            _draw_the_rest(rows, r, key[r], short_budget(fanout), gone[k], like_indices, like_sums, left, neighbors)


@njit(nogil=True, cache=True, inline="always")
def _prefetch_span(address, size):
    prefetch_lines(address, size)
    prefetch(address + size - 1)


@njit(nogil=True, cache=True, inline="always")
def _candidate(bits, degree, cells):
    """Position that 32 random bits give."""
    place = bits * np.uint64(degree)
    cell = np.int64(place >> _S32)
    word = np.int64(cells[SHORT_WORDS * cell + 1])
    other = np.int64((np.int64(place & _LOW_32) | SHORT_MASK) - HALF_CELL >= word)
    return cell ^ ((cell ^ (word & SHORT_MASK)) & -other)


@njit(nogil=True, cache=True)
def _look(rows, r, key, hashes, like_indices, excluded, picks, neighbors):
    """Pick from candidates, with no branch that nobody could foretell; a bit for each position that is gone then."""
    degree, wanted = rows[r, DEGREE], rows[r, WANTED]
    cells = array_at(rows[r, ENTRIES], degree * SHORT_WORDS, like_indices)
    gone = np.uint64(0)
    for e in range(rows[r, EXCLUDED], rows[r, EXCLUDED_END]):
        gone |= _ONE << np.uint64(excluded[e])
    n = np.int64(0)
    c = np.int64(0)
    while n < wanted and c < hashes:
        bits = draw(key, np.uint64(c))
        c += 1
        p = _candidate(bits >> _S32, degree, cells)
        picks[n] = p
        n += np.int64(_ONE & ~(gone >> np.uint64(p)))
        gone |= _ONE << np.uint64(p)
        p = _candidate(bits & _LOW_32, degree, cells)
        picks[n] = p
        n += np.int64(_ONE & ~(gone >> np.uint64(p)))
        gone |= _ONE << np.uint64(p)
    n = min(n, wanted)  # the last hash may have given one more
    for i in range(n):
        neighbors[rows[r, FIRST] + i] = cells[SHORT_WORDS * picks[i]]
    rows[r, PICKED] = n
    return gone


@njit(nogil=True, cache=True)
def _draw_the_rest(rows, r, key, hashes, gone, like_indices, like_sums, left, neighbors):
    """Draw what a row still wants exactly, as long as something of weight is left.

    Args:
        gone: bits of the positions that are picked or excluded. left: int64 scratch `[SHORT]`.
    """
    degree = rows[r, DEGREE]
    sums = array_at(rows[r, SUMS], degree, like_sums)
    cells = array_at(rows[r, ENTRIES], degree * SHORT_WORDS, like_indices)
    before = np.int64(0)
    remaining = np.int64(0)
    for p in range(degree):
        units = sums[p] - before
        before = sums[p]
        remaining += units * np.int64(_ONE & ~(gone >> np.uint64(p)))
        left[p] = remaining
    n = rows[r, PICKED]
    while n < rows[r, WANTED] and remaining > 0:
        target = np.int64(bounded_wide(draw(key, np.uint64(hashes + n)), np.uint64(remaining)))
        p = np.int64(0)
        for i in range(degree):
            p += np.int64(left[i] <= target)
        units = left[p] - (left[p - 1] if p > 0 else np.int64(0))
        for i in range(p, degree):
            left[i] -= units
        remaining -= units
        neighbors[rows[r, FIRST] + n] = cells[SHORT_WORDS * p]
        n += 1
    rows[r, PICKED] = n
