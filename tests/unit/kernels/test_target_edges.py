"""Where target edges stand in rows, grouped by endpoint, and the filter of endpoints, against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.kernels.target_edges import CHUNK, endpoint_filter, group_by_endpoint, may_be_endpoint, target_positions
from tests.unit.graphs import partitioned, random_edges
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention


@pytest.mark.parametrize("n_parts", [1, 4])
def test_positions_of_target_edges(n_parts: int) -> None:
    """Of edges that are there and of some that are not; rows of all lengths, also of none; chunks that are not full."""
    user, item = random_edges(1, 70, 25, 400)
    graph, book = partitioned(user, item, 70, 26, n_parts)
    users = np.concatenate([book.node_id[user], book.node_id[np.arange(70)]]).astype(np.int64)
    items = np.concatenate([book.node_id[70 + item], book.node_id[70 + np.arange(70) % 26]]).astype(np.int64)
    position = np.empty(len(users), np.int64)
    target_positions(users, items, *graph.csc, graph.stable_id, position)
    rows = [graph.row(i).tolist() for i in items]
    assert position.tolist() == [r.index(u) if u in r else -1 for u, r in zip(users.tolist(), rows, strict=True)]
    assert len(users) % CHUNK and (position < 0).any() and any(not row for row in rows)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(6, 9), st.integers(0, 4), st.integers(0, 4)), max_size=40))
@settings(max_examples=100, deadline=None)
def test_groups_by_endpoint(edges: list[tuple[int, int, int, int]]) -> None:
    user, item, user_position, item_position = np.array(edges, np.int64).reshape(-1, 4).T.copy()
    row = np.full(11, -1, np.int32)
    nodes, positions = np.empty((2, 2 * len(edges)), np.int64)
    indptr = np.empty(2 * len(edges) + 1, np.int64)
    n = group_by_endpoint(user, item, user_position, item_position, row, nodes, indptr, positions)
    ends = [(u, p) for u, _, p, _ in edges] + [(i, p) for _, i, _, p in edges]
    assert nodes[:n].tolist() == list(dict.fromkeys(node for node, _ in ends))
    groups = np.split(positions, indptr[1:n]) if n else []
    assert [g.tolist() for g in groups] == [sorted(p for node, p in ends if node == m) for m in nodes[:n]]
    assert row.tolist() == [nodes[:n].tolist().index(m) if m in nodes[:n] else -1 for m in range(11)]


def test_the_filter_passes_every_endpoint_and_few_others() -> None:
    rng = np.random.default_rng(2)
    for n in (0, 1, 300):
        nodes = rng.choice(10_000, n, replace=False)
        marks = endpoint_filter(nodes)
        passed = np.array([may_be_endpoint(node, marks) for node in range(10_000)])
        assert passed[nodes].all()
        assert passed.sum() <= n + 0.1 * 10_000


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
