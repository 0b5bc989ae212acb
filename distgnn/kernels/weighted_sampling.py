"""Neighbour sampling by edge weight, without replacement: every pick is proportional to weight among what is left.

That law, successive sampling (Plackett-Luce), is drawn in two ways. *Candidates* come from the whole row by an alias
table (Walker 1977, Vose 1991), and those that are excluded or picked already are passed over: given the picks so far,
the next candidate that counts is proportional to weight among the rest. After `budget` candidates, where few heavy
edges hold nearly all of the weight, what is still missing is drawn *exactly* from the rest by prefix sums. Which of the
two makes a pick depends on earlier candidates alone, never on what this pick will be, so their mixture has the same
law. A pick costs one cache line of a candidate, or O(fanout + excluded + log degree) of an exact draw; never O(degree).

Weights become whole units of a row-dependent size (see `alias_tables.sum_units`), so tables are the same on every
machine, and for every partitioning but for the node ids in them. Weights that are within 2**(38 - log2 degree) of their
row's largest lose no bit of float32; smaller ones are rounded, to at least one unit. A cell's threshold has 32 bits: in
all, the probabilities of a pick are within budget * 2**-32 of the exact ones.

An edge of weight 0 is never drawn: a row gives as many as it has with a weight above 0, at most the fanout.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, array_at, part_of, prefetch
from distgnn.kernels.alias_tables import HALF_CELL, WORDS
from distgnn.kernels.neighbor_sampling import lower_bound, past_excluded
from distgnn.kernels.rng import bounded_wide, combine, draw, scaled

CHUNK_ROWS = 1024
SHORT = 64  # rows up to it have a bit for each position
CANDIDATES = 512  # whose lines are on the way at a time: most of the first cache level
_LOW_32 = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)

# Columns of a chunk's table of rows.
_DEGREE, _INDICES, _ENTRIES, _SUMS, _ZEROS, _EXCLUDED, _EXCLUDED_END = range(7)
_WANTED, _FIRST, _PICKED, _PLACE, _TRIED, _OFFERED = range(7, 13)
_COLUMNS = 13


@njit(nogil=True, cache=True, inline="always")
def budget(fanout):
    """Candidates of a row, at most: an exact draw costs as much as a dozen of them."""
    return 8 * fanout + 8


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

    Rows go in chunks, and their candidates in rounds: as many as are missing are hashed, then looked at while the
    lines of those to come are on their way.

    Arguments are those of `neighbor_sampling.draw_rows` and:

    Args:
        entries_address, sums_address: int64 `[P]`, of what `build_tables` writes. has_zeros: bool `[P]`, what it gives.
        neighbors: integer, room for the fanout of every node from indptr[0] on.
    """
    n = nodes.shape[0]
    most = min(n, CHUNK_ROWS)
    rows = np.empty((most, _COLUMNS), np.int64)
    key = np.empty(most, np.uint64)
    drawing = np.empty(most, np.int64)
    candidates = np.empty(CANDIDATES, np.uint64)
    group = max(1, CANDIDATES // (2 * fanout))  # rows whose candidates of a round have room
    position = np.empty(group * fanout, np.int64)
    taken = np.empty(fanout, np.int64)
    size = 64
    while size < 16 * fanout:
        size *= 2
    table = np.zeros(size, np.int64)
    generation = 0
    for start in range(0, n, CHUNK_ROWS):
        count = min(CHUNK_ROWS, n - start)
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
        n_drawing = 0
        edge = indptr[start]
        for r in range(count):
            rows[r, _FIRST] = edge
            if 0 < rows[r, _WANTED] < rows[r, _DEGREE] - (rows[r, _EXCLUDED_END] - rows[r, _EXCLUDED]):
                drawing[n_drawing] = r
                n_drawing += 1
            else:
                take_all(rows[r], excluded_position, like_indices, like_indptr, neighbors)
            edge += rows[r, _WANTED]
        for at in range(0, n_drawing, group):
            generation = draw_group(
                rows,
                key,
                drawing[at : min(at + group, n_drawing)],
                fanout,
                like_indptr,
                like_indices,
                excluded_position,
                candidates,
                position,
                taken,
                table,
                generation,
                neighbors,
            )
        edge = indptr[start]
        for r in range(count):
            first = rows[r, _FIRST]
            if first != edge:  # a row before has given less than it was to
                for c in range(rows[r, _PICKED]):
                    neighbors[edge + c] = neighbors[first + c]
            edge += rows[r, _PICKED]
            indptr[start + r + 1] = edge


@njit(nogil=True, cache=True)
def draw_group(
    rows,
    key,
    pending,
    fanout,
    like_sums,
    like_indices,
    excluded,
    candidates,
    position,
    taken,
    table,
    generation,
    neighbors,
):
    """Draw for the rows `pending` int64 `[m]` of a chunk, round by round; the generation of the table after them.

    Args:
        candidates: uint64, room for two fanouts a row (a row that is alone can do with less).
        position: int64 `[m * fanout]`. taken: int64 `[fanout]`. table, generation: see `look`. All are scratch.
    """
    room = candidates.shape[0] // pending.shape[0]
    for k in range(pending.shape[0]):
        rows[pending[k], _PLACE] = k * fanout
    while pending.shape[0] > 0:
        offer(rows, key, pending, fanout, room, like_indices.itemsize * WORDS, candidates)
        generation = look(rows, pending, candidates, like_indices, excluded, table, generation, position, neighbors)
        still = 0
        for r in pending:
            if rows[r, _PICKED] == rows[r, _WANTED]:
                continue
            if rows[r, _TRIED] < budget(fanout):
                pending[still] = r
                still += 1
            else:
                picks = position[rows[r, _PLACE] : rows[r, _PLACE] + fanout]
                draw_the_rest(rows[r], key[r], fanout, like_indices, like_sums, excluded, picks, taken, neighbors)
        pending = pending[:still]
    return generation


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
        rows[i, _DEGREE] = degree
        rows[i, _INDICES] = indices_address[part] + begin * width
        rows[i, _ENTRIES] = entries_address[part] + begin * width * WORDS
        rows[i, _SUMS] = sums_address[part] + begin * 8
        rows[i, _ZEROS] = has_zeros[part]
        rows[i, _EXCLUDED] = first
        rows[i, _EXCLUDED_END] = last
        rows[i, _WANTED] = min(allowed, fanout)
        if has_zeros[part] and _units_before(rows[i, _SUMS], degree, like_indptr) == 0:
            rows[i, _WANTED] = 0
        rows[i, _PICKED] = 0
        rows[i, _TRIED] = 0
        if allowed > fanout:
            node_type = np.uint64(1) if node >= offsets[part, 1] else np.uint64(0)
            key[i] = combine(combine(hop_key, node_type), np.uint64(stable_id[node]))
        else:
            prefetch(rows[i, _INDICES])
            prefetch(rows[i, _INDICES] + degree * width)


@njit(nogil=True, cache=True)
def take_all(row, excluded, like_indices, like_sums, neighbors):
    """All neighbours of a row that has no more than are wanted, but for excluded ones and those of weight 0."""
    indices = array_at(row[_INDICES], row[_DEGREE], like_indices)
    n = row[_FIRST]
    for rank in range(row[_WANTED]):
        p = past_excluded(rank, excluded, row[_EXCLUDED], row[_EXCLUDED_END])
        if row[_ZEROS] and _units(row[_SUMS], p, like_sums) == 0:
            continue
        neighbors[n] = indices[p]
        n += 1
    row[_PICKED] = n - row[_FIRST]


@njit(nogil=True, cache=True)
def offer(rows, key, pending, fanout, room, width, candidates):
    """Hash the next candidates of rows `[m]`, cell << 32 | place in the cell, and have their lines on the way."""
    k = 0
    for r in pending:
        missing = rows[r, _WANTED] - rows[r, _PICKED]
        tried = rows[r, _TRIED]
        degree = rows[r, _DEGREE]
        spare = missing * fanout // degree + 1 if tried == 0 else (missing >> 1) + 1
        n = min(min(missing + spare, room), budget(fanout) - tried)
        rows[r, _OFFERED] = n
        rows[r, _TRIED] = tried + n
        base = rows[r, _ENTRIES]
        row_key = key[r]
        for c in range(tried, tried + n):
            place = scaled(draw(row_key, np.uint64(c)), np.uint64(degree))
            prefetch(base + np.int64(place >> _S32) * width)
            candidates[k] = place
            k += 1


@njit(nogil=True, cache=True)
def look(rows, pending, candidates, like, excluded, table, generation, position, neighbors):
    """Pick from the candidates of rows `[m]`: those of every row are one after the other.

    Args:
        table: int64 `[power of two]`, generation << 32 | position of every pick of the row in turn.
        position: int64, written: positions of each row's picks, from its _PLACE on.

    Returns:
        The generation of the table after them.
    """
    k = 0
    for r in pending:
        generation += 1
        last = k + rows[r, _OFFERED]
        if rows[r, _DEGREE] <= SHORT:
            _look_at_short(rows[r], candidates[k:last], like, excluded, position, neighbors)
        else:
            _look_at_long(rows[r], candidates[k:last], like, excluded, table, generation, position, neighbors)
        k = last
    return generation


@njit(nogil=True, cache=True, inline="always")
def _look_at_short(row, candidates, like, excluded, position, neighbors):
    """With a bit for each position that is not to be picked, and no branch that nobody could foretell."""
    width = like.itemsize * WORDS
    n = row[_PICKED]
    base = row[_ENTRIES]
    first = row[_FIRST]
    picks = row[_PLACE]
    wanted = row[_WANTED]
    gone = np.uint64(0)
    for e in range(row[_EXCLUDED], row[_EXCLUDED_END]):
        gone |= np.uint64(1) << np.uint64(excluded[e])
    for c in range(n):
        gone |= np.uint64(1) << np.uint64(position[picks + c])
    k = 0
    while k < candidates.shape[0] and n < wanted:
        cell = np.int64(candidates[k] >> _S32)
        entry = array_at(base + cell * width, WORDS, like)
        other = np.int64(np.int64(candidates[k] & _LOW_32) - HALF_CELL >= entry[0])
        p = cell ^ ((cell ^ np.int64(entry[3])) & -other)
        neighbors[first + n] = entry[1 + other]
        position[picks + n] = p
        n += np.int64(np.uint64(1) & ~(gone >> np.uint64(p)))
        gone |= np.uint64(1) << np.uint64(p)
        k += 1
    row[_PICKED] = n


@njit(nogil=True, cache=True, inline="always")
def _look_at_long(row, candidates, like, excluded, table, generation, position, neighbors):
    """With a hash table of the picks, of which few are repeated."""
    mask = table.shape[0] - 1
    width = like.itemsize * WORDS
    stamp = np.int64(generation) << 32
    n = row[_PICKED]
    base = row[_ENTRIES]
    first = row[_FIRST]
    picks = row[_PLACE]
    wanted = row[_WANTED]
    for c in range(n):
        slot = (position[picks + c] * 0x9E3779B1) & mask
        while table[slot] >> 32 == generation:
            slot = (slot + 1) & mask
        table[slot] = stamp | position[picks + c]
    begin, end = row[_EXCLUDED], row[_EXCLUDED_END]
    k = 0
    while k < candidates.shape[0] and n < wanted:
        cell = np.int64(candidates[k] >> _S32)
        entry = array_at(base + cell * width, WORDS, like)
        other = np.int64(np.int64(candidates[k] & _LOW_32) - HALF_CELL >= entry[0])
        p = cell ^ ((cell ^ np.int64(entry[3])) & -other)
        k += 1
        if begin < end and _is_among(p, excluded, begin, end):
            continue
        slot = (p * 0x9E3779B1) & mask
        while table[slot] >> 32 == generation and table[slot] != stamp | p:
            slot = (slot + 1) & mask
        if table[slot] == stamp | p:
            continue
        table[slot] = stamp | p
        position[picks + n] = p
        neighbors[first + n] = entry[1 + other]
        n += 1
    row[_PICKED] = n


@njit(nogil=True, cache=True, inline="always")
def _is_among(p, sorted_positions, begin, end):
    found = lower_bound(sorted_positions, begin, end, p)
    return found < end and sorted_positions[found] == p


@njit(nogil=True, cache=True, inline="always")
def _units_before(address, p, like):
    return array_at(address + (p - 1) * 8, 1, like)[0] if p > 0 else np.int64(0)


@njit(nogil=True, cache=True, inline="always")
def _units(address, p, like):
    return array_at(address + p * 8, 1, like)[0] - _units_before(address, p, like)


@njit(nogil=True, cache=True)
def draw_the_rest(row, key, fanout, like_indices, like_sums, excluded, picks, taken, neighbors):
    """Draw what a row still wants exactly, as long as something of weight is left.

    Args:
        row: of the chunk's table. picks: int64 `[fanout]`, positions picked so far. taken: int64 scratch `[fanout]`.
    """
    address, degree = row[_SUMS], row[_DEGREE]
    begin, end = row[_EXCLUDED], row[_EXCLUDED_END]
    n = row[_PICKED]
    remaining = _units_before(address, degree, like_sums)
    for e in range(begin, end):
        remaining -= _units(address, excluded[e], like_sums)
    for c in range(n):
        remaining -= _units(address, picks[c], like_sums)
        _insert(taken, c, picks[c])
    indices = array_at(row[_INDICES], degree, like_indices)
    while n < row[_WANTED] and remaining > 0:
        target = np.int64(bounded_wide(draw(key, np.uint64(budget(fanout) + n)), np.uint64(remaining)))
        p = position_left(target, address, degree, like_sums, taken[:n], excluded[begin:end])
        remaining -= _units(address, p, like_sums)
        _insert(taken, n, p)
        neighbors[row[_FIRST] + n] = indices[p]
        n += 1
    row[_PICKED] = n


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
