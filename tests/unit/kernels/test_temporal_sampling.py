"""Draws up to a cut-off and the relabelling of entries against plain Python, and the statistics of the draws."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from distgnn.graph import Topology
from distgnn.kernels.address import count_up_to
from distgnn.kernels.relabel import append_distinct_entries
from distgnn.kernels.target_edges import endpoint_filter
from distgnn.kernels.temporal_sampling import BLOCK, count_rows_until, draw_rows_until, rank_excluded, times_at
from distgnn.timed_rows import TimedRows, time_dtype
from tests import naive_sampling as naive
from tests import naive_temporal
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun
from tests.unit.kernels.test_neighbor_sampling import bins_statistic

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention

FIRST, LAST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
TIMES = st.one_of(st.integers(-4, 4), st.sampled_from([FIRST, LAST]))  # many equal ones


def one_user(times: list[int] | np.ndarray) -> Topology:
    """User 0 with an item for each timestamp; node ids of the items are 1 + position."""
    n = len(times)
    return Topology.from_edges(np.zeros(n, np.int64), np.arange(n), 1, n, np.array(times, np.int64))


def drawn_positions(
    graph: Topology, cutoffs: list[int], fanout: int, hop_key: int, excluded: list[int]
) -> list[list[int]]:
    """Positions drawn from user 0's row for each cut-off."""
    row = np.full(graph.n_nodes, -1, np.int32)
    row[0] = 0 if excluded else -1
    bounds, ranks = np.array([0, len(excluded)]), np.array(excluded, np.int64)
    rank_excluded(np.zeros(1, np.int64), np.zeros(1, np.int64), bounds, ranks, *graph.csc, *graph.times)
    nodes, cutoff = np.zeros(len(cutoffs), np.int64), np.array(cutoffs, np.int64)
    marks = endpoint_filter(np.zeros(1 if excluded else 0, np.int64))
    indptr, neighbors = np.zeros(len(nodes) + 1, np.int64), np.empty(len(nodes) * fanout, np.int32)
    degree, counted = np.empty((2, len(nodes)), np.int64)
    draw_rows_until(
        nodes,
        cutoff,
        fanout,
        np.uint64(hop_key),
        *graph.csc,
        *graph.times,
        graph.stable_id,
        row,
        bounds,
        ranks,
        marks,
        indptr,
        neighbors,
        degree,
    )
    count_rows_until(nodes, cutoff, *graph.csc, *graph.times, row, bounds, ranks, marks, counted)
    assert (degree == counted).all()
    assert (np.diff(indptr) == np.minimum(degree, fanout)).all()
    return [(part - 1).tolist() for part in np.split(neighbors[: indptr[-1]], indptr[1:-1])]


@given(
    st.lists(TIMES, min_size=1, max_size=70),
    st.lists(TIMES, min_size=1, max_size=4),
    st.integers(1, 50),
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 69)),
)
@settings(max_examples=30 if IS_RERUN else 300, deadline=None)
def test_draws_equal_plain_python(
    times: list[int], cutoffs: list[int], fanout: int, hop_key: int, excluded: set[int]
) -> None:
    """Fanouts above 32 take the hash table, the oracle lists."""
    left_out = sorted(x for x in excluded if x < len(times))
    got = drawn_positions(one_user(times), cutoffs, fanout, hop_key, left_out)
    key = naive.combine(naive.combine(hop_key, 0), 0)  # type user, stable id 0
    row = list(enumerate(times))
    for cutoff, drawn in zip(cutoffs, got, strict=True):
        assert drawn == naive_temporal.sampled_row(row, cutoff, set(left_out), fanout, key)
        assert all(times[p] <= cutoff and p not in left_out for p in drawn)
        assert len(set(drawn)) == len(drawn)


@given(st.lists(st.lists(TIMES, max_size=40), max_size=6), st.sampled_from([np.int64, np.int32]))
@settings(max_examples=60, deadline=None)
def test_rows_by_time_and_position(rows: list[list[int]], dtype: type) -> None:
    if dtype is np.int32:
        rows = [[max(min(t, 9), -9) for t in row] for row in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    time = np.array([t for row in rows for t in row], np.int64)
    indices = np.arange(len(time), dtype=np.int32) * 3
    timed = TimedRows.of(indptr, indices, time, dtype)
    timed.check(indices, np.dtype(dtype))
    for begin, row in zip(indptr, rows, strict=False):
        span = slice(begin, begin + len(row))
        order = sorted(range(len(row)), key=lambda p, row=row: (row[p], p))
        assert timed.time[span].tolist() == [row[p] for p in order]
        assert timed.neighbor[span].tolist() == [indices[begin + p] for p in order]
        assert timed.place[span].tolist() == [order.index(p) for p in range(len(row))]


def test_a_graph_s_times_are_as_narrow_as_they_fit() -> None:
    """The least int32 is kept for cut-offs that are earlier than any timestamp."""
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    for times, dtype in (([low + 1, high], np.int32), ([low], np.int64), ([high + 1], np.int64), ([], np.int32)):
        assert time_dtype(np.array(times, np.int64)) is dtype


def rows_of_degrees(degrees: list[int], span: int, seed: int) -> tuple[Topology, list[np.ndarray]]:
    """Users of these degrees, and each user's timestamps in order."""
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.integers(-span, span, d)) for d in degrees]
    user = np.repeat(np.arange(len(degrees)), degrees)
    item = np.concatenate([np.arange(d) for d in degrees])
    graph = Topology.from_edges(
        user, item, len(degrees), max(degrees), np.concatenate([rng.permutation(t) for t in times])
    )
    return graph, times


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("span", [3, 1000, 2**40])
@pytest.mark.parametrize(
    "degrees",
    [[0, 1, 2, 15, 16, 17, 31, 32, 33], [255, 1, 256, 257, 240, 16, 512, 3], [5000, 7, 4096, 4112], [70_000, 1]],
)
def test_degrees_at_cutoffs_equal_counting(degrees: list[int], span: int) -> None:
    """Rows that begin and end anywhere between fences; at, before and after their timestamps; more than a chunk."""
    graph, times = rows_of_degrees(degrees, span, 5)
    rng = np.random.default_rng(6)
    nodes = rng.integers(0, len(degrees), 24 * BLOCK + 5)
    cutoff = np.empty(len(nodes), np.int64)
    for k, node in enumerate(nodes):
        some = times[node] if degrees[node] else np.zeros(1, np.int64)
        any_time = int(some[rng.integers(len(some))])
        cutoff[k] = (FIRST, LAST, any_time - 1, any_time, any_time + 1, some[0] - 1, some[-1])[k % 7]
    degree, none = np.empty(len(nodes), np.int64), np.empty(0, np.int64)
    row = np.full(graph.n_nodes, -1, np.int32)
    count_rows_until(nodes, cutoff, *graph.csc, *graph.times, row, none, none, endpoint_filter(none), degree)
    wanted = [np.searchsorted(times[n], c, side="right") for n, c in zip(nodes, cutoff, strict=True)]
    assert degree.tolist() == wanted


@given(st.lists(st.integers(-9, 9), min_size=16, max_size=16), st.integers(-10, 10), st.integers(0, 2**16 - 1))
@settings(max_examples=60, deadline=None)
def test_counting_in_a_group(values: list[int], bound: int, window: int) -> None:
    for dtype in (np.int32, np.int64):
        array = np.array(values, dtype)
        wanted = sum(v <= bound for place, v in enumerate(values) if window >> place & 1)
        assert _counted(array, dtype(bound), window) == wanted


@njit
def _counted(values, bound, window):  # type: ignore[no-untyped-def]
    return count_up_to(values.ctypes.data, bound, window)


def test_times_at_positions() -> None:
    time = np.empty(3, np.int64)
    graph = one_user([5, -2, 9])
    times_at(np.array([0, 0, 3]), np.array([1, 2, 0]), *graph.csc, *graph.times, time)
    assert time.tolist() == [-2, 9, 9]


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize(("eligible", "later", "fanout"), [(33, 40, 5), (33, 40, 20), (3500, 2500, 5), (3500, 9, 40)])
def test_the_prefix_is_uniform(eligible: int, later: int, fanout: int) -> None:
    """Every edge up to the cut-off alike, whatever its place in the row; none of the later ones; none excluded."""
    rng = np.random.default_rng(3)
    times = rng.permutation(np.concatenate([rng.integers(0, 20, eligible), rng.integers(21, 60, later)]))
    excluded = np.sort(rng.choice(eligible + later, 7, replace=False))
    allowed = np.setdiff1d(np.flatnonzero(times <= 20), excluded)
    graph, n = one_user(times), 3000
    drawn = np.array([drawn_positions(graph, [20], fanout, key, excluded.tolist())[0] for key in range(n)])
    assert drawn.shape == (n, fanout)
    assert np.isin(drawn, allowed).all()
    rank = np.searchsorted(allowed, drawn)
    bins = np.arange(len(allowed)) * min(len(allowed), 64) // len(allowed)
    statistic, freedom = bins_statistic(rank, bins, len(allowed), fanout)
    assert 1e-4 < stats.chi2.sf(statistic, freedom) < 1 - 1e-4


@pytest.mark.skipif(IS_RERUN, reason="large")
def test_neighbouring_cutoffs_are_independent() -> None:
    """The first picks of two cut-offs that differ by one, with the same edges up to both, fill a table evenly."""
    degree, n = 12, 20_000
    graph = one_user(np.zeros(degree, np.int64))
    cutoffs = list(range(2 * n))
    first = np.array(drawn_positions(graph, cutoffs, 1, 77, [])).reshape(n, 2)
    counts = np.bincount(first[:, 0] * degree + first[:, 1], minlength=degree**2)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


@given(st.lists(st.lists(st.tuples(st.integers(-1, 5), TIMES), max_size=12), max_size=4))
@settings(max_examples=60, deadline=None)
def test_append_distinct_entries_keeps_the_order_of_appearance(groups: list[list[tuple[int, int]]]) -> None:
    table = np.zeros(128, np.int64)
    room = sum(map(len, groups))
    cutoffs = sorted({time for group in groups for _, time in group})
    first = Counter(time for _, time in groups[0]) if groups else Counter()
    before = np.cumsum([0, *(first[time] for time in cutoffs)])  # ranges of the table, some of them empty
    for epoch in (1, 2):  # scratch is not cleared between minibatches
        nodes, cutoff = np.empty(room, np.int64), np.empty(room, np.int32)
        n, expected = 0, []
        for group in groups:
            index = np.empty(len(group), np.int64)
            node = np.array([x for x, _ in group], np.int64)
            number = np.array([cutoffs.index(time) for _, time in group], np.int32)
            runs = [k for k in range(len(group)) if k == 0 or number[k] != number[k - 1]]
            starts, of_run = np.array([*runs, len(group)]), number[runs]
            n = append_distinct_entries(node, starts, of_run, before, table, epoch, nodes, cutoff, n, index)
            expected += [x for x in dict.fromkeys(group) if x[0] >= 0 and x not in expected]
            found = [(node, cutoffs[k]) for node, k in zip(nodes[:n].tolist(), cutoff[:n].tolist(), strict=True)]
            assert found == expected
            assert index.tolist() == [expected.index(x) if x[0] >= 0 else -1 for x in group]


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
