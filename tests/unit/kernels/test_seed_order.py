"""The epoch's order is a permutation, and an edge id means the same edge at every number of partitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distgnn.graph import Topology
from distgnn.kernels.seed_order import neighbors_at, permuted_slice, users_of_edges
from tests import naive_sampling as naive
from tests.unit.graphs import partitioned, random_edges
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention


@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.data())
@example(1, 0, None)
@example(2, 0, None)
@example(4, 1, None)
@example(5, 1, None)
@example(256, 2, None)
@example(257, 2, None)
@settings(max_examples=20 if IS_RERUN else 80, deadline=None)
def test_slices_are_those_of_a_permutation(n: int, key: int, data: st.DataObject | None) -> None:
    out = np.empty(n, np.int64)
    permuted_slice(0, n, np.uint64(key), out)
    assert sorted(out.tolist()) == list(range(n))
    start = data.draw(st.integers(0, n - 1)) if data else 0
    part = np.empty(min(7, n - start), np.int64)
    permuted_slice(start, n, np.uint64(key), part)
    assert part.tolist() == [naive.permutation(start + i, n, key) for i in range(len(part))]
    assert (part == out[start : start + len(part)]).all()


@pytest.mark.skipif(IS_RERUN, reason="large")
def test_every_position_is_equally_likely() -> None:
    n, keys = 11, 20_000
    first = np.empty(keys, np.int64)
    for key in range(keys):
        permuted_slice(3, n, np.uint64(key), first[key : key + 1])
    expected = keys / n
    assert ((np.bincount(first, minlength=n) - expected) ** 2 / expected).sum() < 40  # 10 degrees of freedom: p = 2e-5


@pytest.mark.parametrize("n_parts", [1, 5])
def test_edges_are_resolved(n_parts: int) -> None:
    user, item = random_edges(1, 25, 12, 60)
    # Users without an edge at both ends and, by chance, between.
    user = user + 1
    graph = partitioned(user, item, 28, 12, n_parts)[0] if n_parts > 1 else Topology.from_edges(user, item, 28, 12)
    neighbors = [sorted(item[user == u].tolist()) for u in range(28)]
    assert not neighbors[0]
    assert not neighbors[-1]
    edges = np.arange(len(user))[::-1].copy()
    u, i, p = (np.empty(len(user), np.int64) for _ in range(3))
    users_of_edges(edges, graph.user_offsets, graph.node_id, u, p)
    neighbors_at(u, p, *graph.csc, i)
    got = list(zip(graph.stable_id[u].tolist(), graph.stable_id[i].tolist(), p.tolist(), strict=True))
    assert got == naive.edges_by_id(neighbors)[::-1]


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
