"""Ranking by inner products: scores are made a tile at a time and ranked before they leave the cache.

for each chunk of users (shared out to threads):
    for each tile of items:  inner products -> mask seen -> lists, first targets, items ahead of them

The score of a pair is made in the same tile whatever the number of threads, so that it is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from distgnn import beat
from distgnn.kernels import ranking, tile_ranking
from distgnn.kernels.lanes import LANES

_CHUNK_USERS = 256  # a matrix product of fewer rows is slower; its tile must stay in the second-level cache
_TILE_ITEMS = 512
_NEAR = 32  # scores that a bracket of rounding errors holds at most; more are left to a second pass

Columns = tuple[np.ndarray, np.ndarray]  # int64 [c + 1] offsets into int32 columns of a block, ascending within a row


@dataclass(frozen=True)
class InnerProducts:
    """A block of items whose scores are inner products, for users of a task.

    Attributes:
        users: vectors of all users of the task, `[n, d]`, float32 or float64.
        items: vectors of the block's items, `[m, d]`, of the same dtype; their stable ids ascend.
    """

    users: np.ndarray
    items: np.ndarray


class Rows:
    """Rows of a CSR of stable items, as columns of a block.

    Args:
        indptr: int64 `[n + 1]`. items: stable items int64, ascending within a row. column_of: int32 `[n_items]`.
    """

    def __init__(self, indptr: np.ndarray, items: np.ndarray, column_of: np.ndarray) -> None:
        self._indptr, self._items, self._column_of = indptr, items, column_of

    def columns(self, start: int, stop: int) -> Columns:
        """Of the rows start .. stop."""
        row_start = np.empty(stop - start + 1, np.int64)
        columns = np.empty(self._indptr[stop] - self._indptr[start], np.int32)
        tile_ranking.block_columns(self._column_of, self._indptr, self._items, start, row_start, columns)
        return row_start, columns


@dataclass(frozen=True)
class FirstTargets:
    """Each user's first target in ranking order, over the blocks so far.

    Attributes:
        rows: the targets. best_score: float64 `[n]`, -inf before the first. best_item: int64 `[n]`, -1 likewise.
    """

    rows: Rows
    best_score: np.ndarray
    best_item: np.ndarray


class _ChunkTargets:
    """First targets of a chunk of users, and the scores that rank before them.

    The targets' own inner products, made first, bracket the score that the first target will have in its tile: the
    scores above the bracket are counted while it is not known yet, and the few within it are set aside.
    """

    def __init__(self, products: InnerProducts, targets: FirstTargets, start: int, stop: int, count: bool) -> None:
        self._targets, self._start = targets, start
        self._columns = targets.rows.columns(start, stop)
        self._cursor = self._columns[0][:-1].copy()
        self._brackets: tuple[np.ndarray, ...] = ()
        if count:
            n, dtype = stop - start, products.items.dtype
            low, high = np.empty(n, dtype), np.empty(n, dtype)
            users = products.users[start:stop]
            tile_ranking.bracket_first_targets(users, products.items, *self._columns, low, high)
            counts = (np.zeros(n, np.int64), np.zeros(n, np.int64))
            self._brackets = (low, high, *counts, np.empty((n, _NEAR), dtype), np.empty((n, _NEAR), np.int64))

    def update(self, scores: np.ndarray, first: int, items: np.ndarray, users: np.ndarray) -> None:
        """Take a tile `[c, w]` of the columns from `first` on."""
        best = (self._targets.best_score, self._targets.best_item)
        tile_ranking.update_first_targets(scores, first, items, users, self._start, self._cursor, *self._columns, *best)
        if self._brackets:
            tile_ranking.count_above_brackets(scores, items, *self._brackets)

    def resolve(self, users: np.ndarray, ahead: np.ndarray, counted: np.ndarray) -> None:
        """After all tiles: write the items ahead, where they could be counted."""
        best = (self._targets.best_score, self._targets.best_item)
        tile_ranking.resolve_brackets(users, self._start, *self._brackets, *best, ahead, counted)


class ProductRanking:
    """One block's tiles, and what is done with them.

    Args:
        products: the block. items: its stable items, int64 `[m]`, ascending. users: stable users of the task.
        seen: of all users. k: length of the lists. memory_bytes: for the threads' tiles and lists.
        threads: at most.
    """

    def __init__(
        self,
        products: InnerProducts,
        items: np.ndarray,
        users: np.ndarray,
        seen: Rows,
        k: int,
        memory_bytes: int,
        threads: int,
    ) -> None:
        if len(items) != len(products.items) or not (np.diff(items) > 0).all():
            raise ValueError("the items of a block of inner products must ascend, a vector for each")
        self._products, self._items, self._users, self._seen, self._k = products, items, users, seen, k
        self._capacity = LANES * (2 * k // LANES + 1)  # more than k; room for as many again before they are sifted
        self._width = min(_TILE_ITEMS, len(items))
        dtype = products.items.dtype
        a_row = dtype.itemsize * self._width + (16 + dtype.itemsize) * (self._capacity + _NEAR)
        self._rows = int(min(_CHUNK_USERS, max(1, memory_bytes // a_row)))
        self._threads = int(max(1, min(threads, memory_bytes // (a_row * self._rows))))
        most = products.items.shape[1] * _largest(products.users) * _largest(products.items)
        self._finite = most < np.finfo(dtype).max  # no sum of so small products overflows; NaN compares false

    def rank(
        self,
        top_score: np.ndarray,
        top_item: np.ndarray,
        targets: FirstTargets | None = None,
        ranks: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> int:
        """Merge the block into all users' lists; returns how many scores were not finite numbers before masking.

        Args:
            top_score, top_item: `[n, k]`, as of `distgnn.kernels.ranking.update_top_k`.
            targets: also keep these.
            ranks: of a block of the whole catalogue, with targets: (ahead int64, counted bool) `[n]`, written: the
                items that rank before a first target, and whether that could be told in this one pass.
        """

        def chunk(start: int, stop: int) -> int:
            lists = self._lists(stop - start)
            tile_ranking.start_lists(self._users, start, top_score, top_item, lists)
            mine = _ChunkTargets(self._products, targets, start, stop, ranks is not None) if targets else None
            bad = 0
            for first, items, scores, wrong in self._tiles(start, stop):
                bad += wrong
                tile_ranking.update_lists(scores, items, self._users, start, self._k, lists)
                if mine is not None:
                    mine.update(scores, first, items, self._users)
            tile_ranking.finish_lists(self._users, start, lists, top_score, top_item)
            if mine is not None and ranks is not None:
                mine.resolve(self._users, *ranks)
            return bad

        return sum(self._share(chunk, None))

    def count_ahead(self, best_score: np.ndarray, best_item: np.ndarray, wanted: np.ndarray, ahead: np.ndarray) -> None:
        """Add to `ahead` the block's items before the first targets, for users of wanted bool `[n]`."""

        def chunk(start: int, stop: int) -> int:
            for _, items, scores, _ in self._tiles(start, stop):
                ranking.count_ahead(scores, items, self._users, start, best_score, best_item, wanted, ahead)
            return 0

        self._share(chunk, wanted)

    def _tiles(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
        """(first column, stable items, masked scores `[c, w]`, scores that were not finite) of each tile in turn."""
        beat.tick()
        row_start, columns = self._seen.columns(start, stop)
        cursor = row_start[:-1].copy()
        users, items = self._products.users[start:stop], self._products.items
        buffer = np.empty((stop - start) * self._width, items.dtype)
        for first in range(0, len(items), self._width):
            last = min(first + self._width, len(items))
            scores = buffer[: (stop - start) * (last - first)].reshape(stop - start, last - first)
            with np.errstate(over="ignore", invalid="ignore"):  # refused in words where it happens
                np.matmul(users, items[first:last].T, out=scores)
            bad = 0 if self._finite else tile_ranking.count_not_finite(scores)
            tile_ranking.mask_tile(scores, first, cursor, row_start, columns)
            yield first, self._items[first:last], scores, bad

    def _lists(self, n: int) -> tuple[np.ndarray, ...]:
        shape, dtype = (n, self._capacity), self._products.items.dtype
        collected = (np.empty(shape, dtype), np.empty(shape, np.int32))
        return (*collected, np.empty(n, np.int64), np.empty(n, dtype), np.empty(n, np.uint64))

    def _share(self, work: Callable[[int, int], int], wanted: np.ndarray | None) -> list[int]:
        """Results of the chunks that hold a wanted user, in order."""
        n = len(self._users)
        chunks = [(start, min(start + self._rows, n)) for start in range(0, n, self._rows)]
        if wanted is not None:
            chunks = [span for span in chunks if wanted[slice(*span)].any()]
        with threadpool_limits(1, "blas"):  # a thread a chunk
            if self._threads == 1 or len(chunks) <= 1:
                return [work(*span) for span in chunks]
            with ThreadPoolExecutor(self._threads, thread_name_prefix="distgnn-ranking") as pool:
                return list(pool.map(lambda span: work(*span), chunks))


def _largest(vectors: np.ndarray) -> float:
    """Of the magnitudes."""
    return max(float(vectors.max(initial=0)), -float(vectors.min(initial=0)))
