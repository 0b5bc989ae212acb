"""Metrics against scikit-learn, plain Python and answers known by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from distgnn import metrics
from tests import naive_metrics


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ndcg_equals_scikit_learn(k):
    rng = np.random.default_rng(k)
    relevant = rng.random((30, 40)) < 0.2
    relevant[:, 0] = True
    scores = rng.permuted(np.tile(np.arange(40.0), (30, 1)), axis=1)
    order = np.argsort(-scores, axis=1)[:, :20]
    hits = np.take_along_axis(relevant, order, axis=1)
    ours = metrics.ndcg(hits, relevant.sum(axis=1), k)
    theirs = [ndcg_score(relevant[r : r + 1], scores[r : r + 1], k=k) for r in range(30)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_one_user_by_hand():
    hits = np.array([[False, True, False, True]])
    n_targets = np.array([3])
    assert metrics.recall(hits, n_targets, 2).tolist() == [1 / 3]
    assert metrics.recall(hits, n_targets, 4).tolist() == [2 / 3]
    assert metrics.hit(hits, 1).tolist() == [0.0]
    assert metrics.hit(hits, 2).tolist() == [1.0]
    gain, ideal = 1 / math.log2(3), 1 + 1 / math.log2(3)
    np.testing.assert_allclose(metrics.ndcg(hits, n_targets, 2), [gain / ideal])
    assert metrics.first_hit(hits).tolist() == [2]
    assert metrics.reciprocal_rank(np.array([4, 0])).tolist() == [0.25, 0.0]


def test_ideal_is_truncated_at_k():
    """30 targets, 20 hits of 20: a perfect list, though recall is two thirds."""
    hits = np.ones((1, 20), bool)
    assert metrics.ndcg(hits, np.array([30]), 20) == pytest.approx([1.0])
    assert metrics.recall(hits, np.array([30]), 20) == pytest.approx([2 / 3])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_gini_is_the_mean_difference(exposure):
    ours = metrics.gini(np.array(exposure))
    assert ours == pytest.approx(naive_metrics.gini(exposure) if sum(exposure) else 0.0, abs=1e-12)


def test_gini_and_coverage_extremes():
    assert metrics.gini(np.full(100, 7)) == pytest.approx(0.0)
    one = np.zeros(100, np.int64)
    one[3] = 500
    assert metrics.gini(one) == pytest.approx(0.99)
    assert metrics.coverage(one) == 0.01
    assert metrics.coverage(np.full(100, 7)) == 1.0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.sampled_from([0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_tail_items(degree, share):
    ours = set(np.flatnonzero(metrics.tail_items(np.array(degree), share)).tolist())
    assert ours == naive_metrics.tail(degree, share)


def test_tail_by_hand():
    """100 edges: 50 + 30 reach 80, so the two most popular items are the head."""
    assert metrics.tail_items(np.array([15, 50, 5, 30, 0])).tolist() == [True, False, True, False, True]


def test_sums_of_disjoint_users_add_up():
    rng = np.random.default_rng(1)
    top = np.stack([rng.permutation(30)[:5] for _ in range(12)])
    indptr = np.arange(13) * 2
    targets = np.sort(np.stack([rng.permutation(30)[:2] for _ in range(12)]), axis=1).ravel()
    degree = rng.integers(1, 12, 12)
    tail, cold = rng.random(30) < 0.5, rng.random(30) < 0.2
    first = rng.integers(1, 30, 12)

    def of(begin, end):
        items = targets[indptr[begin] : indptr[end]]
        rows = slice(begin, end)
        offsets = indptr[begin : end + 1] - indptr[begin]
        return metrics.metric_sums(top[rows], first[rows], offsets, items, degree[rows], tail, cold, (3, 5))

    whole, parts = of(0, 12), metrics.add_sums(metrics.add_sums(of(0, 5), of(5, 5)), of(5, 12))
    assert whole.keys() == parts.keys()
    for name, (total, n) in whole.items():
        assert parts[name] == (pytest.approx(total), n)


def test_a_slice_without_users_has_no_key():
    sums = metrics.metric_sums(
        np.array([[0, 1]]), np.array([1]), np.array([0, 1]), np.array([0]), np.array([100]),
        np.zeros(3, bool), np.zeros(3, bool), (2,),
    )  # fmt: skip
    assert set(metrics.means(sums)) == {"recall@2", "ndcg@2", "hit@2", "mrr"}
