"""Ranking kernels against plain Python, jitted, as plain Python and with bounds checked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from distgnn.kernels.ranking import (
    add_sparse_rows,
    count_ahead,
    mark_hits,
    mask_seen,
    tie_key,
    top_k_of_rows,
    update_best_target,
    update_top_k,
)
from tests import naive_metrics
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention, also unjitted


def csr(rows):
    """int64 CSR of a list of sets."""
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return indptr, np.array([i for r in rows for i in sorted(r)], np.int64)


def ranked_by_blocks(scores, users, seen, targets, k, width, order):
    """Lists, first targets and items ahead of them, as the kernels give them block by block."""
    n, m = scores.shape
    seen_indptr, seen_items = csr(seen)
    target_indptr, target_items = csr(targets)
    top_score, top_item = np.full((n, k), -np.inf), np.full((n, k), -1)
    best_score, best_item = np.full(n, -np.inf), np.full(n, -1)
    ahead = np.zeros(n, np.int64)
    masked = []
    for begin in range(0, m, width):
        items = order[begin : begin + width]
        column_of = np.full(m, -1, np.int32)
        column_of[items] = np.arange(len(items))
        block = np.ascontiguousarray(scores[:, items])
        assert mask_seen(block, column_of, seen_indptr, seen_items, 0) == 0
        update_top_k(block, items, users, 0, top_score, top_item)
        update_best_target(block, column_of, users, 0, target_indptr, target_items, best_score, best_item)
        masked.append((block, items))
    for block, items in masked:
        count_ahead(block, items, users, 0, best_score, best_item, best_item >= 0, ahead)
    return top_item, best_item, ahead


@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 200),
    levels=st.integers(1, 50),
    k=st.integers(1, 25),
    width=st.integers(1, 200),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None)
def test_lists_and_ranks_equal_a_full_sort(seed, m, levels, k, width, dtype):
    rng = np.random.default_rng(seed)
    n = 4
    scores = (rng.integers(0, levels, (n, m)) - levels // 2).astype(dtype)
    users = rng.integers(0, 2**40, n)
    seen = [set(np.flatnonzero(rng.random(m) < 0.3).tolist()) for _ in range(n)]
    targets = [set(np.flatnonzero(rng.random(m) < 0.1).tolist()) for _ in range(n)]
    top_item, best_item, ahead = ranked_by_blocks(scores, users, seen, targets, k, width, rng.permutation(m))
    for r in range(n):
        order = naive_metrics.ranking(scores[r], int(users[r]), seen[r])
        expected = (order[:k] + [-1] * k)[:k]
        assert top_item[r].tolist() == expected
        ranks = [p for p, item in enumerate(order) if item in targets[r]]
        assert best_item[r] == (order[ranks[0]] if ranks else -1)
        assert ahead[r] == (ranks[0] if ranks else 0)


def test_tie_key_is_the_documented_hash():
    for user, item in [(0, 0), (1, 0), (0, 1), (2**40, 12345)]:
        assert int(tie_key(user, item)) == naive_metrics.tie_key(user, item)


def test_equal_scores_are_ordered_apart_for_each_user():
    m = 300
    lists = ranked_by_blocks(
        np.zeros((50, m), np.float32), np.arange(50), [set()] * 50, [set()] * 50, 5, 64, np.arange(m)
    )[0]
    assert len({tuple(row) for row in lists.tolist()}) == 50
    assert len(np.unique(lists)) > 150  # 250 draws of 300 items give 170 distinct ones on average


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_scores_are_counted(value, dtype):
    scores = np.zeros((3, 70), dtype)
    scores[1, 69] = scores[2, 0] = value
    scores[0, 0] = np.finfo(dtype).max  # large, but a number
    none = np.zeros(4, np.int64)
    column_of = np.arange(70, dtype=np.int32)
    assert mask_seen(scores, column_of, none, np.empty(0, np.int64), 0) == 2


@given(seed=st.integers(0, 2**32), k=st.integers(1, 12), levels=st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_top_k_of_rows(seed, k, levels):
    rng = np.random.default_rng(seed)
    matrix = sparse.random(6, 20, density=0.5, format="csr", random_state=rng)
    values = rng.integers(1, levels + 1, matrix.nnz).astype(np.float32)
    indptr, indices, kept = np.empty(7, np.int64), np.empty(matrix.nnz, np.int32), np.empty(matrix.nnz, np.float32)
    top_k_of_rows(matrix.indptr, matrix.indices, values, 100, k, indptr, indices, kept)
    for r in range(6):
        entries = list(range(matrix.indptr[r], matrix.indptr[r + 1]))
        order = sorted(entries, key=lambda e: (-values[e], naive_metrics.tie_key(100 + r, int(matrix.indices[e]))))
        expected = [(matrix.indices[e], values[e]) for e in sorted(order[:k])]
        got = slice(indptr[r], indptr[r + 1])
        assert list(zip(indices[got], kept[got], strict=True)) == expected


def test_add_sparse_rows_is_a_product():
    rng = np.random.default_rng(0)
    rows = sparse.random(5, 9, density=0.4, format="csr", random_state=rng)
    rows.data[:] = 1.0
    right = sparse.random(9, 7, density=0.5, format="csr", random_state=rng)
    scores = np.ones((5, 7))
    add_sparse_rows(right.indptr, right.indices, right.data, rows.indptr, rows.indices, scores)
    np.testing.assert_allclose(scores, 1.0 + rows.toarray() @ right.toarray(), rtol=1e-12)


def test_mark_hits():
    indptr, items = csr([{3, 7}, {0}, set()])
    top = np.array([[7, 1, -1], [5, 0, 3], [1, 2, 3]])
    hits = np.empty(top.shape, np.bool_)
    mark_hits(top, indptr, items, hits)
    assert hits.tolist() == [[True, False, False], [False, True, False], [False, False, False]]


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode, tmp_path):
    rerun(__file__, mode, tmp_path)
