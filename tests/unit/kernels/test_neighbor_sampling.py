"""Neighbour draws and relabelling against plain Python, and the statistics of the draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import count_draws, draw_rows, pick_positions, place_rows, position_in_row
from distgnn.kernels.relabel import append_distinct
from tests import naive_sampling as naive
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention


def one_user(degree: int) -> Topology:
    """User 0 with every item; node ids of the items are 1 + position."""
    return Topology.from_edges(np.zeros(degree, np.int64), np.arange(degree), 1, degree)


def drawn_positions(graph: Topology, fanout: int, hop_key: int, excluded: list[int]) -> list[int]:
    """Positions drawn from user 0's row by `draw_rows`."""
    excluded_row = np.full(graph.n_nodes, -1, np.int32)
    excluded_row[0] = 0 if excluded else -1
    indptr, neighbors = np.zeros(2, np.int64), np.empty(fanout, np.int32)
    draw_rows(
        np.zeros(1, np.int64),
        fanout,
        np.uint64(hop_key),
        *graph.csc,
        graph.stable_id,
        excluded_row,
        np.array([0, len(excluded)]),
        np.array(excluded, np.int64),
        indptr,
        neighbors,
    )
    told = np.empty(2, np.int64)
    bounds = np.array([0, len(excluded)])
    count_draws(np.zeros(1, np.int64), fanout, graph.facts, excluded_row, bounds, told)
    assert (told == indptr).all()
    return (neighbors[: indptr[1]] - 1).tolist()


@given(st.integers(1, 90), st.integers(1, 80), st.integers(0, 2**64 - 1), st.sets(st.integers(0, 89)))
@settings(max_examples=30 if IS_RERUN else 200, deadline=None)
def test_draws_equal_plain_floyd(degree: int, fanout: int, hop_key: int, excluded: set[int]) -> None:
    """Fanouts above 32 take the hash table, the oracle a list."""
    left_out = sorted(x for x in excluded if x < degree)
    got = drawn_positions(one_user(degree), fanout, hop_key, left_out)
    key = naive.combine(naive.combine(hop_key, 0), 0)  # type user, stable id 0
    assert got == naive.sampled_row(list(range(degree)), left_out, fanout, key)
    assert len(got) == len(set(got)) == min(fanout, degree - len(left_out))


def bins_statistic(drawn: np.ndarray, bins: np.ndarray, population: int, fanout: int) -> tuple[float, int]:
    """Chi-square of draws without replacement over bins of the population, and its degrees of freedom."""
    width = np.bincount(bins)
    expected = drawn.size * width / population
    seen = np.bincount(bins[drawn.reshape(-1)], minlength=len(width))
    return ((seen - expected) ** 2 / expected).sum() * (population - 1) / (population - fanout), len(width) - 1


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("fanout", [5, 33])
def test_the_rest_is_uniform_with_exclusion(fanout: int) -> None:
    degree, excluded = 50, [0, 1, 7, 20, 21, 22, 49]
    allowed = np.setdiff1d(np.arange(degree), excluded)
    graph = one_user(degree)
    drawn = np.array([drawn_positions(graph, fanout, key, excluded) for key in range(4000)])
    assert np.isin(drawn, allowed).all()
    rank = np.searchsorted(allowed, drawn)
    statistic, freedom = bins_statistic(rank, np.arange(len(allowed)), len(allowed), fanout)
    assert 1e-4 < stats.chi2.sf(statistic, freedom) < 1 - 1e-4


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("word", ["step", "hop", "id"])
def test_neighbouring_keys_are_independent(word: str) -> None:
    """The first picks of two keys that differ by one in a word fill a table of counts evenly."""
    degree, n = 12, 30_000
    table = np.zeros((2, 8), np.int64)
    picked = np.empty(1, np.int64)
    pair = np.empty((n, 2), np.int64)
    for t in range(n):
        for other in (0, 1):
            step, hop, stable = 2 * t, 0, 5
            step += other * (word == "step")
            hop += other * (word == "hop")
            stable += other * (word == "id")
            key = naive.combine(naive.combine(naive.combine(naive.key_of(1, naive.DRAW, step), hop), 0), stable)
            pick_positions(np.uint64(key), degree, 1, table, 1, picked)
            pair[t, other] = picked[0]
    counts = np.bincount(pair[:, 0] * degree + pair[:, 1], minlength=degree**2)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def test_rows_are_put_at_their_places() -> None:
    indptr = np.array([0, 2, 2, 3, 6])
    neighbors = np.zeros(6, np.int32)
    place_rows(np.array([3, 1]), np.array([7, 8, 9], np.int32), indptr, neighbors)
    place_rows(np.array([2, 0]), np.array([4, 5, 6], np.int64), indptr, neighbors)
    assert neighbors.tolist() == [5, 6, 4, 7, 8, 9]


@given(st.lists(st.lists(st.integers(-1, 12), max_size=12), max_size=4))
@settings(max_examples=60, deadline=None)
def test_append_distinct_keeps_the_order_of_appearance(groups: list[list[int]]) -> None:
    slot = np.zeros(13, np.int64)
    for epoch in (1, 2):  # scratch is not cleared between minibatches
        nodes = np.empty(sum(map(len, groups)) + 1, np.int64)
        n, expected = 0, []
        for group in groups:
            index = np.empty(len(group), np.int64)
            n = append_distinct(np.array(group, np.int64), slot, epoch, nodes, n, index)
            expected += [x for x in dict.fromkeys(group) if x >= 0 and x not in expected]
            assert nodes[:n].tolist() == expected
            assert index.tolist() == [expected.index(x) if x >= 0 else -1 for x in group]


@given(st.sets(st.integers(0, 30)), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_position_in_row(row: set[int], wanted: int) -> None:
    ordered = sorted(row)
    got = position_in_row(np.array(ordered, np.int32), np.arange(31, dtype=np.int32), wanted)
    assert got == (ordered.index(wanted) if wanted in row else -1)


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
