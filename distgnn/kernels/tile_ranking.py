"""Running top-k lists, and ranks of first targets, over tiles of scores that are still in the cache.

A tile holds the scores of a chunk of users (rows) and of consecutive columns of a block of items. A row is compared
with the user's k-th best score so far, sixteen columns at a time; what passes is collected, and of some 2 k collected
the best k are kept: a constant time for each that passes, whatever order they come in. The order is that of
`distgnn.kernels.ranking`: (score descending, tie key ascending), total for one user.

A chunk's lists are `lists`, a tuple of
    score float and item int32 [c, capacity], the first `size` of each row in no order; size int64 [c];
    bound float and bound_key uint64 [c]: what an item must rank before; -inf while any will do.
Keys are made where scores are equal, and for the bounds.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.lanes import LANES, count_bits, lanes_above, lanes_at_least, lowest_bit
from distgnn.kernels.ranking import ranks_before, tie_key

_LAST_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALVINGS = 24


@njit(nogil=True, cache=True)
def block_columns(column_of, indptr, items, first_row, row_start, columns):
    """The columns, in a block, of the items of consecutive rows of a CSR.

    Args:
        column_of: int32 `[n_items]`, column of a stable item in this block or -1, ascending with the item.
        indptr: int64 `[n + 1]`. items: stable items, ascending within a row.
        first_row: of the rows wanted. row_start: int64 `[c + 1]`, written. columns: int32, written; ascending in a row.
    """
    n = 0
    for r in range(row_start.shape[0] - 1):
        row_start[r] = n
        for e in range(indptr[first_row + r], indptr[first_row + r + 1]):
            column = column_of[items[e]]
            if column >= 0:
                columns[n] = column
                n += 1
    row_start[row_start.shape[0] - 1] = n


@njit(nogil=True, cache=True)
def count_not_finite(scores):
    """How many of scores float `[c, w]` are not finite numbers."""
    limit = np.finfo(scores.dtype).max
    bad = 0
    for r in range(scores.shape[0]):
        row = scores[r]
        for c in range(row.shape[0]):
            bad += 0 if abs(row[c]) <= limit else 1
    return bad


@njit(nogil=True, cache=True)
def mask_tile(scores, first_column, cursor, row_start, columns):
    """Set the scores of seen columns to -inf, in place.

    Args:
        scores: float `[c, w]`, of the columns first_column .. first_column + w.
        cursor: int64 `[c]`, of each row's first column that no tile has had so far; moved on.
        row_start, columns: of `block_columns`.
    """
    last = first_column + scores.shape[1]
    for r in range(scores.shape[0]):
        e = cursor[r]
        while e < row_start[r + 1] and columns[e] < last:
            scores[r, columns[e] - first_column] = -np.inf
            e += 1
        cursor[r] = e


@njit(nogil=True, cache=True)
def _before(user, score, item, other_score, other_item):
    """Whether an item ranks before another one of the same user."""
    if score != other_score:
        return score > other_score
    return tie_key(user, item) < tie_key(user, other_item)


@njit(nogil=True, cache=True)
def _swap(score, item, i, j):
    score[i], score[j] = score[j], score[i]
    item[i], item[j] = item[j], item[i]


@njit(nogil=True, cache=True)
def _select(user, score, item, n, k):
    """Have the first k of n > k rank before the rest, the worst of them last."""
    low = 0
    high = n - 1
    while low < high:
        # The median of three is the pivot: rising or falling scores are then no worse than others.
        middle = (low + high) >> 1
        if _before(user, score[middle], item[middle], score[low], item[low]):
            _swap(score, item, low, middle)
        if _before(user, score[high], item[high], score[low], item[low]):
            _swap(score, item, low, high)
        if _before(user, score[high], item[high], score[middle], item[middle]):
            _swap(score, item, middle, high)
        pivot = score[middle]
        pivot_item = item[middle]
        i = low
        j = high
        while i <= j:
            while _before(user, score[i], item[i], pivot, pivot_item):
                i += 1
            while _before(user, pivot, pivot_item, score[j], item[j]):
                j -= 1
            if i <= j:
                _swap(score, item, i, j)
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@njit(nogil=True, cache=True)
def _keep_best(user, score, item, n, k):
    """Have the best k of n > k first, in no order; returns the position of the worst of them.

    A score that k of them reach is looked for by halving, with vector instructions: several times as fast as to move
    items about one by one. Equal scores at the border, or scores of very different size, are left to `_select`.

    Args:
        score, item: `[capacity]`, a multiple of LANES.
    """
    capacity = score.shape[0]
    low = score[0]
    high = score[0]
    for j in range(n):
        low = min(low, score[j])
        high = max(high, score[j])
    score[n:] = -np.inf
    half = score.dtype.type(0.5)
    border = high
    for _ in range(_HALVINGS):
        reached = 0
        for start in range(0, capacity, LANES):
            reached += count_bits(lanes_at_least(score, start, border))
        if reached == k:
            kept = 0
            worst = 0
            for j in range(n):
                candidate = score[j]
                score[kept] = candidate
                item[kept] = item[j]
                kept += 1 if candidate >= border else 0
            for j in range(1, k):
                if score[j] < score[worst]:
                    worst = j
            for j in range(k):
                if score[j] == score[worst] and _before(user, score[worst], item[worst], score[j], item[j]):
                    worst = j
            return worst
        low = border if reached > k else low
        high = border if reached < k else high
        border = low + (high - low) * half
    _select(user, score, item, n, k)
    return k - 1


@njit(nogil=True, cache=True)
def start_lists(users, first_row, top_score, top_item, lists):
    """Take the lists of a chunk of users out of those of all.

    Args:
        users: stable ids of all users, int64 `[n]`. first_row: of the chunk.
        top_score: float64 `[n, k]`, best first. top_item: int64 `[n, k]`, -1 after the last.
        lists: written.
    """
    score, item, size, bound, bound_key = lists
    k = top_item.shape[1]
    for r in range(size.shape[0]):
        i = first_row + r
        n = 0
        while n < k and top_item[i, n] >= 0:
            score[r, n] = top_score[i, n]
            item[r, n] = top_item[i, n]
            n += 1
        size[r] = n
        bound[r] = score[r, k - 1] if n == k else -np.inf
        bound_key[r] = tie_key(users[i], item[r, k - 1]) if n == k else _LAST_KEY


@njit(nogil=True, cache=True)
def update_lists(scores, items, users, first_row, k, lists):
    """Merge a tile into a chunk's lists.

    Args:
        scores: float `[c, w]`, -inf where masked. items: stable ids of the columns, int64 `[w]`.
        users, first_row: as in `start_lists`. k: length of the lists, less than their capacity.
    """
    score, item, size, bound, bound_key = lists
    capacity = score.shape[1]
    width = scores.shape[1]
    for r in range(scores.shape[0]):
        user = users[first_row + r]
        n = size[r]
        limit = bound[r]
        limit_key = bound_key[r]
        for start in range(0, width, LANES):
            if start + LANES <= width:
                passed = lanes_at_least(scores[r], start, limit)
            else:
                passed = 0
                for c in range(start, width):
                    passed |= (1 if scores[r, c] >= limit else 0) << (c - start)
            while passed != 0:
                c = start + lowest_bit(passed)
                passed &= passed - 1
                candidate = scores[r, c]
                if candidate <= limit and (
                    candidate < limit or candidate == -np.inf or tie_key(user, items[c]) >= limit_key
                ):
                    continue
                score[r, n] = candidate
                item[r, n] = items[c]
                n += 1
                if n == capacity:
                    worst = _keep_best(user, score[r], item[r], n, k)
                    n = k
                    limit = score[r, worst]
                    limit_key = tie_key(user, item[r, worst])
        size[r] = n
        bound[r] = limit
        bound_key[r] = limit_key


@njit(nogil=True, cache=True)
def finish_lists(users, first_row, lists, top_score, top_item):
    """Write a chunk's lists back, best first."""
    score, item, size, _, _ = lists
    k = top_item.shape[1]
    for r in range(size.shape[0]):
        user = users[first_row + r]
        n = size[r]
        row_score = score[r]
        row_item = item[r]
        if n > k:
            _keep_best(user, row_score, row_item, n, k)
            n = k
        gap = 1
        while 3 * gap + 1 < n:
            gap = 3 * gap + 1
        while gap > 0:  # Shell's sort
            for i in range(gap, n):
                j = i
                while j >= gap and _before(user, row_score[j], row_item[j], row_score[j - gap], row_item[j - gap]):
                    _swap(row_score, row_item, j, j - gap)
                    j -= gap
            gap //= 3
        for j in range(n):
            top_score[first_row + r, j] = row_score[j]
            top_item[first_row + r, j] = row_item[j]


@njit(nogil=True, cache=True)
def update_first_targets(
    scores, first_column, items, users, first_row, cursor, row_start, columns, best_score, best_item
):
    """Keep each user's first target in ranking order, over the tiles seen so far.

    Args:
        scores, first_column: as in `mask_tile`, masked (a masked target is never ranked).
        items: stable ids of the tile's columns, int64 `[w]`. users, first_row: as in `start_lists`.
        cursor: int64 `[c]`, moved on. row_start, columns: of `block_columns`, of the targets.
        best_score: float64 `[n]`, starts at -inf. best_item: int64 `[n]`, starts at -1.
    """
    last = first_column + scores.shape[1]
    for r in range(scores.shape[0]):
        i = first_row + r
        e = cursor[r]
        while e < row_start[r + 1] and columns[e] < last:
            score = scores[r, columns[e] - first_column]
            item = items[columns[e] - first_column]
            e += 1
            if score == -np.inf:
                continue
            if best_item[i] < 0 or ranks_before(
                score, tie_key(users[i], item), best_score[i], tie_key(users[i], best_item[i])
            ):
                best_score[i] = score
                best_item[i] = item
        cursor[r] = e


@njit(nogil=True, cache=True)
def bracket_first_targets(user_vectors, item_vectors, row_start, columns, low, high):
    """Between which scores each user's first target will be found, however its inner product is rounded.

    Args:
        user_vectors: float `[c, d]`. item_vectors: float `[m, d]`, of a block of the whole catalogue.
        row_start, columns: of `block_columns`, of the targets.
        low, high: of the vectors' dtype, `[c]`, written; inf where a user has no target.
    """
    d = user_vectors.shape[1]
    # d roundings by half a last place of the sum of magnitudes at most (Higham 2002, section 3.1), and the bounds' own.
    share = (0.5 * d + 1.0) * np.finfo(user_vectors.dtype).eps
    for r in range(low.shape[0]):
        lowest = -np.inf
        highest = -np.inf
        for e in range(row_start[r], row_start[r + 1]):
            item = item_vectors[columns[e]]
            product = 0.0
            magnitude = 0.0
            for c in range(d):
                term = np.float64(user_vectors[r, c]) * np.float64(item[c])
                product += term
                magnitude += abs(term)
            lowest = max(lowest, product - share * magnitude)
            highest = max(highest, product + share * magnitude)
        low[r] = lowest if row_start[r + 1] > row_start[r] else np.inf
        high[r] = highest if row_start[r + 1] > row_start[r] else np.inf


@njit(nogil=True, cache=True)
def count_above_brackets(scores, items, low, high, above, n_near, near_score, near_item):
    """Count the scores above each row's bracket and collect those within.

    Args:
        scores: float `[c, w]`, masked. items: int64 `[w]`. low, high: of `bracket_first_targets`.
        above: int64 `[c]`, added to. n_near: int64 `[c]`, added to, also beyond what there is room for.
        near_score: of the scores' dtype, `[c, room]`. near_item: int64, likewise.
    """
    width = scores.shape[1]
    for r in range(scores.shape[0]):
        if low[r] == np.inf:
            continue
        greater = 0
        for start in range(0, width, LANES):
            if start + LANES <= width:
                reach = lanes_at_least(scores[r], start, low[r])
                beyond = lanes_above(scores[r], start, high[r])
            else:
                reach = 0
                beyond = 0
                for c in range(start, width):
                    reach |= (1 if scores[r, c] >= low[r] else 0) << (c - start)
                    beyond |= (1 if scores[r, c] > high[r] else 0) << (c - start)
            greater += count_bits(beyond)
            near = reach & ~beyond
            while near != 0:
                c = start + lowest_bit(near)
                near &= near - 1
                if n_near[r] < near_score.shape[1]:
                    near_score[r, n_near[r]] = scores[r, c]
                    near_item[r, n_near[r]] = items[c]
                n_near[r] += 1
        above[r] += greater


@njit(nogil=True, cache=True)
def resolve_brackets(
    users, first_row, low, high, above, n_near, near_score, near_item, best_score, best_item, ahead, counted
):
    """Count the items ahead of each first target, where what was collected tells.

    Args:
        users, first_row: as in `start_lists`. best_score, best_item: of `update_first_targets`, over all tiles.
        low, high, above, n_near, near_score, near_item: of `count_above_brackets`, over all tiles.
        ahead: int64 `[n]`, written where counted. counted: bool `[n]`, written.
    """
    for r in range(low.shape[0]):
        i = first_row + r
        counted[i] = best_item[i] < 0 or (low[r] <= best_score[i] <= high[r] and n_near[r] <= near_score.shape[1])
        if best_item[i] < 0 or not counted[i]:
            continue
        greater = above[r]
        key = tie_key(users[i], best_item[i])
        for j in range(n_near[r]):
            if ranks_before(near_score[r, j], tie_key(users[i], near_item[r, j]), best_score[i], key):
                greater += 1
        ahead[i] = greater
