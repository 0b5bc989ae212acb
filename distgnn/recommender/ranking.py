"""Top-k of the catalogue for rows of vectors, in bounded memory, on several threads.

for each chunk of users (a thread each):  for each block of items:  scores -> mask seen and blocked -> running top-k

Order and ties are those of the evaluation (`distgnn.kernels.ranking`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from distgnn.export.table import Table
from distgnn.kernels.quantized import int8_scores
from distgnn.kernels.ranking import mask_seen, update_top_k
from distgnn.types import UserError

_BLOCK_ITEMS = 1 << 16
_CHUNK_BYTES = 8 << 20  # scores of a chunk of users, so that they are ranked out of the cache
_MIN_ROWS = 64  # below it a matrix product is slow

Lists = tuple[np.ndarray, np.ndarray]  # stable items int64 [n, k], best first, -1 after the last; scores float64 [n, k]


@dataclass(frozen=True)
class ItemFilter:
    """Which items may be recommended.

    Attributes:
        allowed: stable items int64 `[m]`, ascending, or None: all.
        blocked: stable items int64, taken out of these.
    """

    allowed: np.ndarray | None = None
    blocked: np.ndarray | None = None


EVERYTHING = ItemFilter()


@dataclass(frozen=True)
class Seen:
    """Items to leave out for each user of a request: int64 `[n + 1]` offsets into stable items int32."""

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def of_one(cls, items: np.ndarray) -> Seen:
        """One user's."""
        return cls(np.array([0, len(items)], np.int64), items)

    @classmethod
    def nothing(cls, n: int) -> Seen:
        """For n users nothing."""
        return cls(np.zeros(n + 1, np.int64), np.empty(0, np.int32))


class Catalogue:
    """The items' vectors, ready to be scored.

    Args:
        items: `[n_items, d]`.
    """

    def __init__(self, items: Table) -> None:
        # Scales are widened once, not at every request.
        self.items = Table(items.values, None if items.scale is None else items.scale.astype(np.float32))

    def __len__(self) -> int:
        return len(self.items)

    def blocks(self, chosen: ItemFilter) -> Iterator[tuple[np.ndarray, Table]]:
        """(stable items int64 `[m]`, their rows) of what is allowed."""
        n = len(self) if chosen.allowed is None else len(chosen.allowed)
        for start in range(0, n, _BLOCK_ITEMS):
            stop = min(start + _BLOCK_ITEMS, n)
            if chosen.allowed is None:
                yield np.arange(start, stop), self.items.take(slice(start, stop))
            else:
                ids = chosen.allowed[start:stop]
                yield ids, self.items.take(ids)

    def top_k(
        self, users: Table, user_ids: np.ndarray, k: int, seen: Seen, chosen: ItemFilter, threads: int = 1
    ) -> Lists:
        """Lists of users.

        Args:
            users: `[n, d]`, of the items' dtype. user_ids: their stable ids, int64 `[n]`, for the order of ties.
            k: length of the lists. seen: of these users. chosen: the items that may be in them.
            threads: at most, one a chunk of users.

        Raises:
            UserError: scores that are not finite numbers.
        """
        n = len(users)
        lists = _empty_lists(n, k)
        widest = min(_BLOCK_ITEMS, len(self))
        rows = max(_MIN_ROWS, _CHUNK_BYTES // (4 * widest))
        starts = range(0, n, rows)

        def one(start: int) -> None:
            self._rank_chunk(users, user_ids, seen, chosen, slice(start, min(start + rows, n)), lists)

        if threads == 1 or len(starts) <= 1:
            for start in starts:
                one(start)
            return lists
        # A thread a chunk; the matrix product must not start threads of its own in each of them.
        products = threadpool_limits(1, "blas") if self.items.scale is None else nullcontext()
        with products, ThreadPoolExecutor(min(threads, len(starts))) as pool:
            list(pool.map(one, starts))
        return lists

    def _rank_chunk(
        self, users: Table, user_ids: np.ndarray, seen: Seen, chosen: ItemFilter, part: slice, lists: Lists
    ) -> None:
        vectors = users.take(part)
        indptr = seen.indptr[part.start : part.stop + 1]
        column_of = np.full(len(self), -1, np.int32)
        for ids, items in self.blocks(chosen):
            scores = _scores(vectors, items)
            _merge(scores, ids, user_ids[part], Seen(indptr, seen.items), chosen, column_of, lists, part)


def _scores(users: Table, items: Table) -> np.ndarray:
    """Inner products `[c, m]`: float32, or float64 where the tables are."""
    if users.scale is None or items.scale is None:
        with np.errstate(over="ignore", invalid="ignore"):  # refused in words where it happens
            return users.values @ items.values.T
    scores = np.empty((len(users), len(items)), np.float32)
    int8_scores(users.values, users.scale.astype(np.float32), items.values, items.scale, scores)
    return scores


def _empty_lists(n: int, k: int) -> Lists:
    return np.full((n, k), -1, np.int64), np.full((n, k), -np.inf)


def _merge(
    scores: np.ndarray,
    ids: np.ndarray,
    user_ids: np.ndarray,
    seen: Seen,
    chosen: ItemFilter,
    column_of: np.ndarray,
    lists: Lists,
    part: slice,
) -> None:
    """Merge a block of scores `[c, m]` into the lists of a part of the users; `column_of` stays all -1."""
    column_of[ids] = np.arange(len(ids), dtype=np.int32)
    bad = mask_seen(scores, column_of, seen.indptr, seen.items, 0)
    if bad:
        raise UserError(f"{bad} scores are not finite numbers: the run's vectors are too large; train it anew")
    if chosen.blocked is not None:
        columns = column_of[chosen.blocked]
        scores[:, columns[columns >= 0]] = -np.inf
    column_of[ids] = -1
    items, best = lists
    update_top_k(scores, ids, user_ids, 0, best[part], items[part])


def top_k_of_scores(scores: np.ndarray, user_id: int, k: int, left_out: np.ndarray, chosen: ItemFilter) -> Lists:
    """The list of given scores of all items.

    Args:
        scores: float `[n_items]`, finite. user_id: for the order of ties. left_out: stable items, integer.
    """
    row = scores.copy()
    if chosen.allowed is not None:
        outside = np.ones(len(row), np.bool_)
        outside[chosen.allowed] = False
        row[outside] = -np.inf
    if chosen.blocked is not None:
        row[chosen.blocked] = -np.inf
    row[left_out] = -np.inf
    lists = _empty_lists(1, k)
    update_top_k(row[None], np.arange(len(row)), np.array([user_id]), 0, lists[1], lists[0])
    return lists
