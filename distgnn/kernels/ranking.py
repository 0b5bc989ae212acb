"""Top-k over blocks of items, exact ranks, and top-k of sparse rows.

The order of a user's items is (score descending, hash of (stable user, stable item) ascending). For one user the hash
is a bijection of the item, so the order is total and does not depend on how the catalogue is cut into blocks.

A row of scores is read a few times while it sits in the cache; nearly all of its tiles fail one vectorised compare with
the user's worst kept score. Masked scores are -inf, so every score must come in finite.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.rng import STREAM_TIE, combine, hash2

TILE = 64


@njit(nogil=True, cache=True, inline="always")
def tie_key(user, item):
    """Order of equal scores, uint64: ascending. `user` and `item` are stable ids."""
    return combine(hash2(STREAM_TIE, np.uint64(user)), np.uint64(item))


@njit(nogil=True, cache=True, inline="always")
def ranks_before(score, key, other_score, other_key):
    """Whether (score, key) ranks before the other."""
    return score > other_score or (score == other_score and key < other_key)


@njit(nogil=True, cache=True)
def mask_seen(scores, column_of, seen_indptr, seen_items, first_row):
    """Set the scores of seen items to -inf, in place.

    Args:
        scores: float `[c, m]`, of the users first_row .. first_row + c.
        column_of: int32 `[n_items]`, column of a stable item in this block or -1.
        seen_indptr: int64 `[n + 1]`, offsets of all users' seen items.
        seen_items: int64, stable items.
        first_row: user of the first row.

    Returns:
        The number of scores that were not finite before the masking.
    """
    bad = 0
    limit = np.finfo(scores.dtype).max
    for r in range(scores.shape[0]):
        row = scores[r]
        for c in range(row.shape[0]):
            bad += 0 if abs(row[c]) <= limit else 1
        for e in range(seen_indptr[first_row + r], seen_indptr[first_row + r + 1]):
            column = column_of[seen_items[e]]
            if column >= 0:
                row[column] = -np.inf
    return bad


@njit(nogil=True, cache=True)
def update_top_k(scores, items, users, first_row, top_score, top_item):
    """Merge a block of masked scores into the users' running top-k.

    Args:
        scores: float `[c, m]`, -inf where masked.
        items: stable ids of the columns, int64 `[m]`.
        users: stable ids of all users, int64 `[n]`.
        first_row: user of the first row.
        top_score: float64 `[n, k]`, best first, starts at -inf.
        top_item: int64 `[n, k]`, best first, starts at -1.
    """
    k = top_item.shape[1]
    m = scores.shape[1]
    for r in range(scores.shape[0]):
        row = scores[r]
        kept_score = top_score[first_row + r]
        kept_item = top_item[first_row + r]
        user = users[first_row + r]
        # The threshold has the scores' own dtype: kept scores are exact copies of them.
        threshold = scores.dtype.type(kept_score[k - 1])
        for begin in range(0, m, TILE):
            tile = row[begin : begin + TILE]
            candidates = 0
            for c in range(tile.shape[0]):
                candidates += 1 if tile[c] >= threshold else 0
            if candidates == 0:
                continue
            for c in range(begin, begin + tile.shape[0]):
                score = row[c]
                if score < threshold or score == -np.inf:
                    continue
                key = tie_key(user, items[c])
                if kept_item[k - 1] >= 0 and not ranks_before(
                    score, key, kept_score[k - 1], tie_key(user, kept_item[k - 1])
                ):
                    continue
                j = k - 1
                while j > 0 and (
                    kept_item[j - 1] < 0 or ranks_before(score, key, kept_score[j - 1], tie_key(user, kept_item[j - 1]))
                ):
                    kept_score[j] = kept_score[j - 1]
                    kept_item[j] = kept_item[j - 1]
                    j -= 1
                kept_score[j] = score
                kept_item[j] = items[c]
                threshold = scores.dtype.type(kept_score[k - 1])


@njit(nogil=True, cache=True)
def update_best_target(scores, column_of, users, first_row, target_indptr, target_items, best_score, best_item):
    """Keep each user's first target in ranking order, over the blocks seen so far.

    Args:
        scores: float `[c, m]`, -inf where masked (a masked target is never ranked).
        column_of: int32 `[n_items]`, column of a stable item in this block or -1.
        users: stable ids of all users, int64 `[n]`.
        first_row: user of the first row.
        target_indptr: int64 `[n + 1]`, offsets of all users' targets.
        target_items: int64, stable items.
        best_score: float64 `[n]`, starts at -inf.
        best_item: int64 `[n]`, starts at -1.
    """
    for r in range(scores.shape[0]):
        i = first_row + r
        for e in range(target_indptr[i], target_indptr[i + 1]):
            item = target_items[e]
            column = column_of[item]
            if column < 0 or scores[r, column] == -np.inf:
                continue
            score = scores[r, column]
            if best_item[i] < 0 or ranks_before(
                score, tie_key(users[i], item), best_score[i], tie_key(users[i], best_item[i])
            ):
                best_score[i] = score
                best_item[i] = item


@njit(nogil=True, cache=True)
def count_ahead(scores, items, users, first_row, best_score, best_item, wanted, ahead):
    """Add the number of items of a block that rank before each user's first target.

    Args:
        scores: float `[c, m]`, -inf where masked.
        items: stable ids of the columns, int64 `[m]`.
        users: stable ids of all users, int64 `[n]`.
        first_row: user of the first row.
        best_score: float64 `[n]`, of the first targets.
        best_item: int64 `[n]`, the first targets.
        wanted: bool `[n]`, users to count for.
        ahead: int64 `[n]`, added to.
    """
    for r in range(scores.shape[0]):
        i = first_row + r
        if not wanted[i]:
            continue
        row = scores[r]
        best = scores.dtype.type(best_score[i])
        greater = 0
        equal = 0
        for c in range(row.shape[0]):
            greater += 1 if row[c] > best else 0
            equal += 1 if row[c] == best else 0
        if equal > 0:
            key = tie_key(users[i], best_item[i])
            for c in range(row.shape[0]):
                if row[c] == best and tie_key(users[i], items[c]) < key:
                    greater += 1
        ahead[i] += greater


@njit(nogil=True, cache=True)
def mark_hits(top_items, target_indptr, target_items, hits):
    """Set hits bool `[n, k]` where top_items int64 `[n, k]` are among the user's ascending targets (int64 CSR)."""
    for i in range(top_items.shape[0]):
        for j in range(top_items.shape[1]):
            item = top_items[i, j]
            low = target_indptr[i]
            high = target_indptr[i + 1]
            while low < high:
                middle = (low + high) >> 1
                if target_items[middle] < item:
                    low = middle + 1
                else:
                    high = middle
            hits[i, j] = low < target_indptr[i + 1] and target_items[low] == item


@njit(nogil=True, cache=True)
def top_k_of_rows(indptr, indices, values, first_row, k, out_indptr, out_indices, out_values):
    """Keep the k largest entries of every row of a CSR matrix, in the order they stood in.

    Equal values at the threshold go by the hash of (row, column): no item profits from its place in the catalogue.

    Args:
        indptr: integer `[n + 1]`.
        indices: integer `[e]`.
        values: float `[e]`.
        first_row: row id of row 0, for the hash.
        k: entries to keep of a row.
        out_indptr: int64 `[n + 1]`.
        out_indices: integer, room for the sum of min(k, entries of the row).
        out_values: float, as much.
    """
    out = 0
    out_indptr[0] = 0
    for r in range(indptr.shape[0] - 1):
        begin = indptr[r]
        end = indptr[r + 1]
        threshold = values.dtype.type(-np.inf)
        last_key = np.uint64(0xFFFFFFFFFFFFFFFF)  # entries equal to the threshold stay up to this key
        if end - begin > k:
            threshold = np.partition(values[begin:end], end - begin - k)[end - begin - k]
            above = 0
            equal = 0
            for e in range(begin, end):
                above += 1 if values[e] > threshold else 0
                equal += 1 if values[e] == threshold else 0
            keys = np.empty(equal, np.uint64)
            equal = 0
            for e in range(begin, end):
                if values[e] == threshold:
                    keys[equal] = tie_key(first_row + r, indices[e])
                    equal += 1
            last_key = np.partition(keys, k - above - 1)[k - above - 1]
        for e in range(begin, end):
            if values[e] > threshold or (values[e] == threshold and tie_key(first_row + r, indices[e]) <= last_key):
                out_indices[out] = indices[e]
                out_values[out] = values[e]
                out += 1
        out_indptr[r + 1] = out


@njit(nogil=True, cache=True)
def add_sparse_rows(indptr, indices, values, row_indptr, row_indices, scores):
    """Add to each user's scores the sparse rows of the user's items: scores += R S.

    Args:
        indptr: of the CSR S `[n_items, m]`.
        indices: of S.
        values: of S.
        row_indptr: of the binary CSR R `[c, n_items]`.
        row_indices: of R.
        scores: float `[c, m]`, added to.
    """
    for r in range(scores.shape[0]):
        row = scores[r]
        for e in range(row_indptr[r], row_indptr[r + 1]):
            item = row_indices[e]
            for f in range(indptr[item], indptr[item + 1]):
                row[indices[f]] += values[f]
