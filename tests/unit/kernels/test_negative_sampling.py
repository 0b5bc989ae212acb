"""Negatives against plain Python: never a positive, uniform on the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distgnn.graph import Topology
from distgnn.kernels.negative_sampling import known_columns, shared_negatives, uniform_negatives
from tests import naive_sampling as naive
from tests.unit.graphs import partitioned
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention


def graph_of(positives: list[set[int]], n_items: int, n_parts: int) -> Topology:
    edges = np.array([(u, i) for u, row in enumerate(positives) for i in sorted(row)], np.int64).reshape(-1, 2)
    user, item = edges[:, 0].copy(), edges[:, 1].copy()
    return partitioned(user, item, len(positives), n_items, n_parts)[0]


def drawn_items(graph: Topology, user: np.ndarray, item: np.ndarray, key: int, k: int) -> np.ndarray:
    """Stable ids of the negatives of edges in stable ids, -1 kept."""
    out = np.empty((len(user), k), np.int64)
    uniform_negatives(
        graph.node_id[user].astype(np.int64),
        graph.node_id[graph.n_users + item].astype(np.int64),
        np.uint64(key),
        graph.n_items,
        graph.n_users,
        *graph.csc,
        graph.stable_id,
        graph.node_id,
        out,
    )
    return np.where(out < 0, -1, graph.stable_id[out])


positive_sets = st.lists(st.sets(st.integers(0, 9)), min_size=2, max_size=6)


@given(positive_sets, st.integers(0, 2**64 - 1), st.integers(1, 3))
@settings(max_examples=20 if IS_RERUN else 80, deadline=None)
def test_negatives_equal_plain_python(positives: list[set[int]], key: int, n_parts: int) -> None:
    positives = [*positives, set(range(10)), {4}]  # a user who has everything, and one edge at least
    graph = graph_of(positives, 10, n_parts)
    user = np.arange(len(positives))
    item = np.array([min(row, default=0) for row in positives])
    got = drawn_items(graph, user, item, key, 4).tolist()
    for u, row in enumerate(positives):
        edge_key = naive.combine(naive.combine(key, u), int(item[u]))
        assert got[u] == naive.negatives(row, 10, edge_key, 4)
    assert got[-2] == [-1] * 4


@pytest.mark.skipif(IS_RERUN, reason="large")
def test_negatives_are_uniform_on_the_rest() -> None:
    positives = {0, 3, 4, 5, 19}
    graph = graph_of([positives, {1}], 20, 2)
    got = drawn_items(graph, np.zeros(1, np.int64), np.array([3]), 5, 30_000)
    counts = np.bincount(got.reshape(-1), minlength=20)
    assert not counts[sorted(positives)].any()
    rest = np.delete(counts, sorted(positives))
    assert 1e-4 < stats.chisquare(rest).pvalue < 1 - 1e-4


def test_shared_negatives_are_items() -> None:
    graph = graph_of([{0}, {1}], 7, 3)
    out = np.empty(200, np.int64)
    shared_negatives(np.uint64(9), 7, 2, graph.node_id, out)
    assert graph.stable_id[out].tolist() == [naive.bounded(naive.draw(9, k), 7) for k in range(200)]
    assert set(out.tolist()) == set(graph.node_id[2:].tolist())


@given(positive_sets, st.lists(st.integers(0, 9), max_size=40), st.data())
@settings(max_examples=20 if IS_RERUN else 80, deadline=None)
def test_known_columns_equal_plain_python(positives: list[set[int]], columns: list[int], data: st.DataObject) -> None:
    """Items repeat among the columns, and more pairs are found than the first buffer holds."""
    positives = [*positives, {4}, set(range(10))]
    graph = graph_of(positives, 10, 3)
    own = data.draw(st.lists(st.integers(-1, len(columns) - 1), min_size=len(positives), max_size=len(positives)))
    head = np.full(graph.n_nodes, -1, np.int32)
    pairs = known_columns(
        graph.node_id[: len(positives)].astype(np.int64),
        np.array(own, np.int64),
        graph.node_id[len(positives) + np.array(columns, np.int64)].astype(np.int64),
        head,
        np.empty(len(columns), np.int32),
        *graph.csc,
    )
    assert len({*zip(*pairs.tolist(), strict=True)}) == pairs.shape[1]
    assert {*zip(*pairs.tolist(), strict=True)} == naive.known_columns(positives, own, columns)
    assert (head == -1).all()


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
