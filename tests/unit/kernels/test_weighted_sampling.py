"""Draws by weight against plain Python, and their statistics against successive sampling written out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distgnn.graph import Topology
from distgnn.kernels.alias_tables import WORDS, build_tables
from distgnn.kernels.rng import bounded_wide
from distgnn.kernels.weighted_sampling import draw_rows_by_weight
from tests import naive_sampling as naive
from tests import naive_weighted
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention

Weights = list[float] | np.ndarray
# Equal ones, none, tiny and dominating ones, and any.
WEIGHTS = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, 3.0, 1e6, 1e12, 1.401298464324817e-45, 3.4028234663852886e38]),
    st.floats(0.0, 100.0, width=32),
)


def one_user(weights: Weights) -> Topology:
    """User 0 with an item for each weight; node ids of the items are 1 + position."""
    n = len(weights)
    return Topology.from_edges(np.zeros(n, np.int64), np.arange(n), 1, n, weight=np.array(weights, np.float32))


def drawn(
    graph: Topology, nodes: np.ndarray, fanout: int, hop_key: int, excluded: dict[int, list[int]]
) -> list[list[int]]:
    """Node ids drawn for nodes; excluded: sorted positions by node."""
    row = np.full(graph.n_nodes, -1, np.int32)
    row[list(excluded)] = np.arange(len(excluded))
    bounds = np.cumsum([0, *map(len, excluded.values())])
    positions = np.array([p for left_out in excluded.values() for p in left_out], np.int64)
    indptr = np.full(len(nodes) + 1, 2, np.int64)
    neighbors = np.full(2 + len(nodes) * fanout, -7, graph.like_indices.dtype)
    draw_rows_by_weight(
        nodes,
        fanout,
        np.uint64(hop_key),
        *graph.csc,
        *graph.weights,
        graph.stable_id,
        row,
        bounds,
        positions,
        indptr,
        neighbors,
    )
    assert (neighbors[:2] == -7).all()
    return [part.tolist() for part in np.split(neighbors[2 : indptr[-1]], indptr[1:-1] - 2)]


def positions_of_user(graph: Topology, fanout: int, hop_key: int, excluded: list[int]) -> list[int]:
    """Positions drawn from user 0's row."""
    found = drawn(graph, np.zeros(1, np.int64), fanout, hop_key, {0: excluded} if excluded else {})[0]
    return [node - 1 for node in found]


def row_key(hop_key: int, node_type: int = 0, stable: int = 0) -> int:
    return naive.combine(naive.combine(hop_key, node_type), stable)


@given(
    st.lists(WEIGHTS, min_size=1, max_size=40),
    st.sampled_from([1, 4]),
    st.integers(1, 40),
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 159)),
)
@settings(max_examples=30 if IS_RERUN else 300, deadline=None)
def test_draws_equal_plain_python(
    weights: list[float], times: int, fanout: int, hop_key: int, excluded: set[int]
) -> None:
    """Rows of more than 64 take the hash table, the oracle lists; heavy edges drive both to exact draws."""
    weights = weights * times
    left_out = sorted(x for x in excluded if x < len(weights))
    got = positions_of_user(one_user(weights), fanout, hop_key, left_out)
    assert got == naive_weighted.sampled_row(np.float32(weights).tolist(), left_out, fanout, row_key(hop_key))
    assert len(set(got)) == len(got)
    assert not set(got) & set(left_out)
    assert all(weights[p] > 0 for p in got)
    assert len(got) == min(fanout, sum(w > 0 for p, w in enumerate(weights) if p not in excluded))


@given(st.lists(st.tuples(st.lists(WEIGHTS, max_size=12), st.sampled_from([1, 1, 1, 7])), max_size=6))
@settings(max_examples=100, deadline=None)
def test_cells_hold_the_weights(repeated: list[tuple[list[float], int]]) -> None:
    """What the cells of a row hold of an edge is its share; nothing of an edge of weight 0.

    To 2**-32 of a cell, and in a row of at most 64, where thresholds have 26 bits, to 2**-26 a cell.
    """
    rows = [row * times for row, times in repeated]
    indptr = np.cumsum([0, *map(len, rows)])
    weight = np.array([w for row in rows for w in row], np.float32)
    entries, sums = np.empty(len(weight) * WORDS, np.int32), np.empty(len(weight), np.int64)
    zeros = build_tables(indptr, np.arange(len(weight), dtype=np.int32), weight, entries, sums)
    assert zeros == (0 in weight)
    for begin, row in zip(indptr.tolist(), rows, strict=False):
        mine = entries[begin * WORDS : (begin + len(row)) * WORDS].tolist()
        units = naive_weighted.units(np.float32(row).tolist()) if row else []
        assert np.diff([0, *sums[begin : begin + len(row)].tolist()]).tolist() == units
        if sum(units) == 0:
            continue
        held = Counter(dict.fromkeys(range(len(row)), 0))
        touched = Counter(range(len(row)))
        for p in range(len(row)):
            if len(row) <= 64:
                own, packed = mine[2 * p : 2 * p + 2]
                threshold, alias = (packed + 2**31) // 64 * 64, (packed + 2**31) % 64
            else:
                threshold, own, other, alias = mine[4 * p : 4 * p + 4]
                threshold += 2**31
                assert other == begin + alias
            assert own == begin + p
            held[p] += threshold
            held[alias] += 2**32 - threshold
            touched[alias] += 1
        shares = naive_weighted.shares(units)
        for p, share in held.items():
            lost = 64 * touched[p] if len(row) <= 64 else 0
            assert abs(share - shares[p]) <= lost
            assert abs(share - units[p] / sum(units) * len(row) * 2**32) < 2 + lost
            assert share == 0 or row[p] > 0


def test_a_unit_loses_nothing_of_ordinary_weights() -> None:
    weights = [0.1, 3.0, 250.0, 1e6]
    units = naive_weighted.units(np.float32(weights).tolist())
    assert [u / units[1] * 3.0 for u in units] == np.float32(weights).tolist()
    assert 2**59 < sum(units) <= 2**62


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**63))
@settings(max_examples=200, deadline=None)
def test_bounded_wide_is_the_high_word(bits: int, n: int) -> None:
    assert int(bounded_wide(np.uint64(bits), np.uint64(n))) == naive.bounded(bits, n)


def chi_square(seen: Counter[tuple[int, ...]], probability: dict[tuple[int, ...], float], n: int) -> float:
    """P-value; sequences of fewer than 8 expected go together."""
    assert set(seen) <= set(probability)
    common = [picks for picks, p in probability.items() if p * n >= 8]
    counts = [seen[picks] for picks in common]
    expected = [n * probability[picks] for picks in common]
    if len(common) < len(probability):
        counts.append(n - sum(counts))
        expected.append(n - sum(expected))
    return float(stats.chisquare(counts, expected).pvalue)


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("degree", [2, 33, 40_000])
def test_one_pick_is_by_weight(degree: int) -> None:
    """In bins of consecutive positions, where there are many."""
    weights = np.random.default_rng(degree).exponential(size=degree).astype(np.float32)
    graph, n = one_user(weights), 30_000
    found = np.array([positions_of_user(graph, 1, key, [])[0] for key in range(n)])
    bins = np.arange(degree) * min(degree, 64) // degree
    mass = np.bincount(bins, weights=weights.astype(np.float64))
    assert 1e-4 < stats.chisquare(np.bincount(bins[found]), n * mass / mass.sum()).pvalue < 1 - 1e-4


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("length", [0, 70])
@pytest.mark.parametrize("excluded", [[], [2], [0, 4]])
@pytest.mark.parametrize("fanout", [2, 3])
def test_sequences_of_picks_are_successive_sampling(fanout: int, excluded: list[int], length: int) -> None:
    """Every sequence as often as it should, also in a row that is made long by edges of weight 0."""
    weights = [1.0, 2.0, 5.0, 0.5, 20.0, 2.0]
    graph, n = one_user([*weights, *[0.0] * length]), 10_000
    seen = Counter(tuple(positions_of_user(graph, fanout, key, excluded)) for key in range(n))
    p = chi_square(seen, naive_weighted.sequences(weights, excluded, fanout), n)
    assert 1e-4 < p < 1 - 1e-4


@pytest.mark.skipif(IS_RERUN, reason="large")
@pytest.mark.parametrize("heavy", [1e6, 1e9])
@pytest.mark.parametrize("length", [0, 70])
def test_one_edge_that_dominates_leaves_the_others_in_proportion(heavy: float, length: int) -> None:
    """Nearly every candidate is the heavy edge: what comes after it is drawn exactly."""
    weights = [1.0, 4.0, heavy, 2.0, 8.0]
    graph, n = one_user([*weights, *[0.0] * length]), 10_000
    seen = Counter(tuple(positions_of_user(graph, 3, key, [])) for key in range(n))
    p = chi_square(seen, naive_weighted.sequences(weights, [], 3), n)
    assert 1e-4 < p < 1 - 1e-4


@pytest.mark.skipif(IS_RERUN, reason="large")
def test_neighbouring_keys_are_independent() -> None:
    degree, n = 12, 20_000
    graph = one_user(np.arange(1, degree + 1))
    first = np.array([positions_of_user(graph, 1, key, [])[0] for key in range(2 * n)]).reshape(n, 2)
    share = np.arange(1, degree + 1) / np.arange(1, degree + 1).sum()
    counts = np.bincount(first[:, 0] * degree + first[:, 1], minlength=degree**2)
    assert 1e-4 < stats.chisquare(counts, n * np.outer(share, share).reshape(-1)).pvalue < 1 - 1e-4


@pytest.mark.parametrize("fanout", [1, 9, 300])
def test_many_rows_at_once_are_each_as_if_alone(fanout: int) -> None:
    """Chunks, groups and rounds leave no trace, nor do rows that give less than others because edges weigh nothing."""
    rng = np.random.default_rng(6)
    n_users, n_items = (12, 20) if IS_RERUN else (1500, 400)
    key = np.unique(rng.integers(0, n_users * n_items, n_users * 20))
    user, item = key // n_items, (n_items * (key % n_items / n_items) ** 2).astype(np.int64)
    user, item = np.unique(np.stack([user, item]), axis=1)
    weight = rng.pareto(1.0, len(user)) * (rng.random(len(user)) < 0.6) * (user % 7 > 0)
    graph = Topology.from_edges(user, item, n_users, n_items, weight=weight)
    nodes = rng.permutation(graph.n_nodes)
    degree = graph.degree(np.arange(graph.n_nodes))
    excluded = {int(x): sorted({0, int(degree[x]) - 1}) for x in nodes[::3] if degree[x]}
    found = drawn(graph, nodes, fanout, 5, excluded)
    for node, got in list(zip(nodes.tolist(), found, strict=True))[:: 1 if IS_RERUN else 11]:
        row, is_item = graph.row(node).tolist(), node >= n_users
        wanted = naive_weighted.sampled_row(
            graph.row_weights(node).tolist(),
            excluded.get(node, []),
            fanout,
            row_key(5, int(is_item), node - n_users * is_item),
        )
        assert got == [row[p] for p in wanted]
        assert drawn(graph, np.array([node]), fanout, 5, excluded) == [got]


@pytest.mark.skipif("NUMBA_DISABLE_JIT" not in os.environ, reason="wide ids would be compiled anew")
def test_wide_ids_change_nothing() -> None:
    weights = np.array([0.0, *np.random.default_rng(2).pareto(1.0, 80)], np.float32)
    graph = one_user(weights)
    indptr, indices = graph.part_arrays(0)
    parts = [(indptr, indices.astype(np.int64))]
    wide = Topology(
        graph.offsets, graph.stable_id, graph.node_id, parts, graph.user_offsets, weights=[np.tile(weights, 2)]
    )
    for key in range(20):
        assert positions_of_user(wide, 12, key, [3]) == positions_of_user(graph, 12, key, [3])


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
