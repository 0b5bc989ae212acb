"""Neighbour sampling by edge weight, without replacement: every pick is proportional to weight among what is left.

That law, successive sampling (Plackett-Luce), is drawn in two ways. *Candidates* come from the whole row by an alias
table (Walker 1977, Vose 1991), and those that are excluded or picked already are passed over: given the picks so far,
the next candidate that counts is proportional to weight among the rest. After `budget` candidates, where few heavy
edges hold nearly all of the weight, what is still missing is drawn *exactly* from the rest by prefix sums. Which of the
two makes a pick depends on earlier candidates alone, never on what this pick will be, so their mixture has the same
law. A pick costs one cache line of a candidate, or O(fanout + excluded + log degree) of an exact draw; never O(degree).

Weights become whole units of a row-dependent size (see `alias_tables.sum_units`), so tables are the same on every
machine, and for every partitioning but for the node ids in them. Weights that are within 2**(38 - log2 degree) of their
row's largest lose no bit of float32; smaller ones are rounded, to at least one unit. A cell's threshold has 32 bits, or
26 in a short row (see `short_weighted_rows`): in all, the probabilities of a pick are within the number of candidates
times 2**-32, or 2**-25, of the exact ones.

An edge of weight 0 is never drawn: a row gives as many as it has with a weight above 0, at most the fanout.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import array_at, prefetch
from distgnn.kernels.alias_tables import HALF_CELL, SHORT, WORDS
from distgnn.kernels.rng import draw, scaled
from distgnn.kernels.short_weighted_rows import draw_short_rows
from distgnn.kernels.weighted_rows import (
    COLUMNS,
    DEGREE,
    ENTRIES,
    EXCLUDED,
    EXCLUDED_END,
    FIRST,
    OFFERED,
    PICKED,
    PLACE,
    TRIED,
    WANTED,
    budget,
    draw_the_rest,
    find_rows,
    take_all,
)

CHUNK_ROWS = 1024
CHUNK_EDGES = 16384  # positions of a chunk's picks: within the second cache level
CANDIDATES = 512  # whose lines are on the way at a time: most of the first cache level
_LOW_32 = np.uint64(0xFFFFFFFF)
_S32, _ONE = np.uint64(32), np.uint64(1)


@njit(nogil=True, cache=True)
def draw_rows_by_weight(
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
    excluded_position,
    indptr,
    neighbors,
):
    """Draw up to `fanout` in-neighbours of each node by weight.

    Rows go in chunks: short ones one after the other, the candidates of long ones in rounds. As many as are missing are
    hashed, and then looked at when their lines have come.

    Arguments are those of `neighbor_sampling.draw_rows` and:

    Args:
        entries_address, sums_address: int64 `[P]`, of what `build_tables` writes. has_zeros: bool `[P]`, what it gives.
        neighbors: integer, room for the fanout of every node from indptr[0] on.
    """
    n = nodes.shape[0]
    most = max(1, min(n, CHUNK_ROWS, CHUNK_EDGES // fanout))
    rows = np.empty((most, COLUMNS), np.int64)
    key = np.empty(most, np.uint64)
    long, short = np.empty((2, most), np.int64)
    candidates = np.empty(CANDIDATES, np.uint64)
    position = np.empty(most * fanout, np.int64)
    for start in range(0, n, most):
        count = min(most, n - start)
        find_rows(
            nodes[start : start + count],
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
        )
        n_long = 0
        n_short = 0
        edge = indptr[start]
        for r in range(count):
            rows[r, FIRST] = edge
            if 0 < rows[r, WANTED] < rows[r, DEGREE] - (rows[r, EXCLUDED_END] - rows[r, EXCLUDED]):
                if rows[r, DEGREE] <= SHORT:
                    short[n_short] = r
                    n_short += 1
                else:
                    long[n_long] = r
                    n_long += 1
            else:
                take_all(rows[r], excluded_position, like_indices, like_indptr, neighbors)
            edge += rows[r, WANTED]
        draw_short_rows(rows, key, short[:n_short], fanout, like_indices, like_indptr, excluded_position, neighbors)
        draw_long_rows(
            rows,
            key,
            long[:n_long],
            fanout,
            like_indptr,
            like_indices,
            excluded_position,
            candidates,
            position,
            neighbors,
        )
        edge = indptr[start]
        for r in range(count):
            first = rows[r, FIRST]
            if first != edge:  # a row before has given less than it was to
                for c in range(rows[r, PICKED]):
                    neighbors[edge + c] = neighbors[first + c]
            edge += rows[r, PICKED]
            indptr[start + r + 1] = edge


@njit(nogil=True, cache=True)
def draw_long_rows(rows, key, pending, fanout, like_sums, like_indices, excluded, candidates, position, neighbors):
    """Draw for the rows `pending` int64 `[m]` of a chunk, round by round.

    Args:
        candidates: uint64 scratch. position: int64 scratch `[m * fanout]`.
    """
    group = max(1, candidates.shape[0] // (2 * fanout))  # rows whose candidates of a round have room
    for k in range(pending.shape[0]):
        rows[pending[k], PLACE] = k * fanout
    while pending.shape[0] > 0:
        still = 0
        for at in range(0, pending.shape[0], group):
            some = pending[at : min(at + group, pending.shape[0])]
            offer(rows, key, some, fanout, like_indices.itemsize * WORDS, candidates)
            look(rows, some, candidates, like_indices, excluded, position, neighbors)
        for r in pending:
            if rows[r, PICKED] == rows[r, WANTED]:
                continue
            if rows[r, TRIED] < budget(fanout):
                pending[still] = r
                still += 1
            else:
                picks = position[rows[r, PLACE] : rows[r, PLACE] + fanout]
                draw_the_rest(rows[r], key[r], fanout, like_indices, like_sums, excluded, picks, neighbors)
        pending = pending[:still]


@njit(nogil=True, cache=True)
def offer(rows, key, some, fanout, width, candidates):
    """Hash the next candidates of rows `[m]`, cell << 32 | place in the cell, and have their lines on the way."""
    room = candidates.shape[0] // some.shape[0]  # a row that is alone can do with less than it wants
    k = 0
    for r in some:
        missing = rows[r, WANTED] - rows[r, PICKED]
        tried = rows[r, TRIED]
        degree = rows[r, DEGREE]
        # At first few are repeated; a row in which most were is offered as many again.
        n = missing + missing * fanout // degree + 1 if tried == 0 else max(missing + (missing >> 1) + 1, tried)
        n = min(min(n, room), budget(fanout) - tried)
        rows[r, OFFERED] = n
        rows[r, TRIED] = tried + n
        base = rows[r, ENTRIES]
        row_key = key[r]
        for c in range(tried, tried + n):
            place = scaled(draw(row_key, np.uint64(c)), np.uint64(degree))
            prefetch(base + np.int64(place >> _S32) * width)
            candidates[k] = place
            k += 1


@njit(nogil=True, cache=True)
def look(rows, some, candidates, like, excluded, position, neighbors):
    """Pick from the candidates of rows `[m]`: those of every row are one after the other.

    Two bits of a position, by its last six bits and by the six before them, rule out for most that they are gone.

    Args:
        position: int64, written: positions of each row's picks, from its PLACE on.
    """
    width = like.itemsize * WORDS
    k = 0
    for r in some:
        last = k + rows[r, OFFERED]
        base = rows[r, ENTRIES]
        picks = rows[r, PLACE]
        n = picks + rows[r, PICKED]
        wanted = picks + rows[r, WANTED]
        shift = rows[r, FIRST] - picks
        begin, end = rows[r, EXCLUDED], rows[r, EXCLUDED_END]
        low = np.uint64(0)
        high = np.uint64(0)
        for e in range(begin, end):
            low |= _ONE << np.uint64(excluded[e] & 63)
            high |= _ONE << np.uint64((excluded[e] >> 6) & 63)
        for c in range(picks, n):
            low |= _ONE << np.uint64(position[c] & 63)
            high |= _ONE << np.uint64((position[c] >> 6) & 63)
        while k < last and n < wanted:
            cell = np.int64(candidates[k] >> _S32)
            entry = array_at(base + cell * width, WORDS, like)
            other = np.int64(np.int64(candidates[k] & _LOW_32) - HALF_CELL >= entry[0])
            p = cell ^ ((cell ^ np.int64(entry[3])) & -other)
            k += 1
            bit, bit_of_high = np.uint64(p & 63), np.uint64((p >> 6) & 63)
            maybe = (low >> bit) & (high >> bit_of_high) & _ONE
            if maybe and (_is_in(p, position, picks, n) or _is_in(p, excluded, begin, end)):
                continue
            low |= _ONE << bit
            high |= _ONE << bit_of_high
            position[n] = p
            neighbors[shift + n] = entry[1 + other]
            n += 1
        rows[r, PICKED] = n - picks
        k = last


@njit(nogil=True, cache=True, inline="always")
def _is_in(wanted, positions, begin, end):
    found = False
    for c in range(begin, end):
        found |= positions[c] == wanted
    return found
