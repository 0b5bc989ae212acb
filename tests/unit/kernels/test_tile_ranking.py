"""Lists and ranks from tiles against plain Python, jitted, as plain Python and with bounds checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.kernels import tile_ranking
from distgnn.kernels.lanes import LANES
from tests import naive_metrics
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention, also unjitted

EXAMPLES = 15 if IS_RERUN else 40
DTYPES = [np.float32] if IS_RERUN else [np.float32, np.float64]
NEAR = 3


def csr(rows: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return indptr, np.array([i for r in rows for i in sorted(r)], np.int64)


class Tiles:
    """Scores `[n, m]` ranked in blocks of `block` columns, cut into tiles of `width`; blocks in any order."""

    def __init__(self, scores: np.ndarray, users: np.ndarray, seen: list[set[int]], targets: list[set[int]]) -> None:
        self.scores, self.users, self.seen, self.targets = scores, users, csr(seen), csr(targets)
        n = len(users)
        self.best = (np.full(n, -np.inf), np.full(n, -1))
        self.ahead, self.counted = np.zeros(n, np.int64), np.zeros(n, np.bool_)

    def columns(self, rows: tuple[np.ndarray, np.ndarray], items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        column_of = np.full(self.scores.shape[1], -1, np.int32)
        column_of[items] = np.arange(len(items))
        row_start, columns = np.empty(len(self.users) + 1, np.int64), np.empty(len(rows[1]), np.int32)
        tile_ranking.block_columns(column_of, *rows, 0, row_start, columns)
        return row_start, columns

    def rank(self, k: int, blocks: list[np.ndarray], width: int, brackets: np.ndarray | None) -> np.ndarray:
        """Lists `[n, k]`; brackets `[2, n]` are given where the one block is everything."""
        n = len(self.users)
        top_score, top_item = np.full((n, k), -np.inf), np.full((n, k), -1)
        capacity = LANES * (2 * k // LANES + 1)
        dtype = self.scores.dtype
        for items in blocks:
            lists = (np.empty((n, capacity), dtype), np.empty((n, capacity), np.int32))
            lists = (*lists, np.empty(n, np.int64), np.empty(n, dtype), np.empty(n, np.uint64))
            tile_ranking.start_lists(self.users, 0, top_score, top_item, lists)
            seen, targets = self.columns(self.seen, items), self.columns(self.targets, items)
            seen_cursor, target_cursor = seen[0][:-1].copy(), targets[0][:-1].copy()
            near: tuple[np.ndarray, ...] = ()
            if brackets is not None:
                counts = (np.zeros(n, np.int64), np.zeros(n, np.int64))
                near = (*brackets.astype(dtype), *counts, np.empty((n, NEAR), dtype), np.empty((n, NEAR), np.int64))
            for first in range(0, len(items), width):
                part = items[first : first + width]
                tile = np.ascontiguousarray(self.scores[:, part])
                tile_ranking.mask_tile(tile, first, seen_cursor, *seen)
                tile_ranking.update_lists(tile, part, self.users, 0, k, lists)
                tile_ranking.update_first_targets(tile, first, part, self.users, 0, target_cursor, *targets, *self.best)
                if near:
                    tile_ranking.count_above_brackets(tile, part, *near)
            tile_ranking.finish_lists(self.users, 0, lists, top_score, top_item)
            if near:
                tile_ranking.resolve_brackets(self.users, 0, *near, *self.best, self.ahead, self.counted)
        return top_item


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 200),
    levels=st.sampled_from([1, 2, 10, 1000]),
    k=st.integers(1, 40),
    block=st.integers(1, 200),
    width=st.integers(1, 70),
    order=st.sampled_from(["rising", "falling", "any"]),
    share_seen=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_lists_and_first_targets_equal_a_full_sort(
    dtype: type, seed: int, m: int, levels: int, k: int, block: int, width: int, order: str, share_seen: float
) -> None:
    rng = np.random.default_rng(seed)
    n = 3
    scores = (rng.integers(0, levels, (n, m)) - levels // 2).astype(dtype)
    if order != "any":
        scores = np.sort(scores, axis=1)[:, :: 1 if order == "rising" else -1].copy()
    users = rng.integers(0, 2**40, n)
    seen = [set(np.flatnonzero(rng.random(m) < share_seen).tolist()) for _ in range(n)]
    targets = [set(np.flatnonzero(rng.random(m) < 0.1).tolist()) for _ in range(n)]
    shuffled = rng.permutation(m)
    blocks = [np.sort(shuffled[start : start + block]) for start in range(0, m, block)]
    tiles = Tiles(scores, users, seen, targets)
    top_item = tiles.rank(k, blocks, width, None)
    for r in range(n):
        ranking = naive_metrics.ranking(scores[r], int(users[r]), seen[r])
        assert top_item[r].tolist() == (ranking[:k] + [-1] * k)[:k]
        found = [item for item in ranking if item in targets[r]]
        assert tiles.best[1][r] == (found[0] if found else -1)
        assert tiles.best[0][r] == (scores[r, found[0]] if found else -np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 150),
    levels=st.sampled_from([1, 10, 1000]),
    width=st.integers(1, 70),
    below=st.integers(-1, 2),
    above=st.integers(-1, 2),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_items_ahead_are_counted_where_the_bracket_holds(
    dtype: type, seed: int, m: int, levels: int, width: int, below: int, above: int
) -> None:
    """A bracket that the first target is not in, or that too many scores are in, must be noticed."""
    rng = np.random.default_rng(seed)
    n = 4
    scores = rng.integers(0, levels, (n, m)).astype(dtype)
    users = rng.integers(0, 2**40, n)
    seen = [set(np.flatnonzero(rng.random(m) < 0.2).tolist()) for _ in range(n)]
    targets = [set(np.flatnonzero(rng.random(m) < 0.1).tolist()) - seen[r] for r in range(n)]
    orders = [naive_metrics.ranking(scores[r], int(users[r]), seen[r]) for r in range(n)]
    ranks = [next((p for p, item in enumerate(order) if item in targets[r]), -1) for r, order in enumerate(orders)]
    brackets = np.full((2, n), np.inf)
    for r, rank in enumerate(ranks):
        if rank >= 0:
            brackets[:, r] = scores[r, orders[r][rank]] + np.array([-below, above])
    tiles = Tiles(scores, users, seen, targets)
    tiles.rank(5, [np.arange(m)], width, brackets)
    for r, rank in enumerate(ranks):
        low, high = brackets[:, r]
        within = sum(low <= scores[r, item] <= high for item in orders[r])
        holds = rank < 0 or (below >= 0 and above >= 0 and within <= NEAR)
        assert tiles.counted[r] == holds
        if holds:
            assert tiles.ahead[r] == max(rank, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_any_size_are_kept_apart(dtype: type) -> None:
    """Halving a range of 30 orders of magnitude does not find the border; neither do neighbouring numbers."""
    rng = np.random.default_rng(0)
    wide = (10.0 ** rng.uniform(-20, 10, 300)).astype(dtype)
    close = (1 + np.finfo(dtype).eps * rng.integers(0, 400, 300)).astype(dtype)
    scores = np.stack([wide, -wide, close, -close])
    users = np.arange(4)
    top_item = Tiles(scores, users, [set()] * 4, [set()] * 4).rank(20, [np.arange(300)], 64, None)
    for r in range(4):
        assert top_item[r].tolist() == naive_metrics.ranking(scores[r], r, set())[:20]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bracket_holds_every_rounding(dtype: type) -> None:
    rng = np.random.default_rng(1)
    users = (rng.standard_normal((50, 24)) * 10.0 ** rng.uniform(-3, 3, (50, 1))).astype(dtype)
    items = rng.standard_normal((80, 24)).astype(dtype)
    targets = [set(rng.integers(0, 80, rng.integers(0, 6)).tolist()) for _ in range(50)]
    row_start, columns = csr(targets)
    low, high = np.empty(50, dtype), np.empty(50, dtype)
    tile_ranking.bracket_first_targets(users, items, row_start, columns.astype(np.int32), low, high)
    for r, wanted in enumerate(targets):
        if not wanted:
            assert low[r] == high[r] == np.inf
            continue
        for order in (np.arange(24), np.arange(24)[::-1], rng.permutation(24)):
            sums = []
            for item in wanted:
                total = dtype(0)
                for c in order:
                    total = dtype(total + users[r, c] * items[item, c])
                sums.append(total)
            assert low[r] <= max(sums) <= high[r]
        scale = max(float(np.abs(users[r] * items[item]).sum()) for item in wanted)
        assert high[r] - low[r] < 30 * np.finfo(dtype).eps * scale


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_scores_are_counted(value: float, dtype: type) -> None:
    scores = np.zeros((3, 70), dtype)
    scores[1, 69] = scores[2, 0] = value
    scores[0, 0] = np.finfo(dtype).max  # large, but a number
    assert tile_ranking.count_not_finite(scores) == 2


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
