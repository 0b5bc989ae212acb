"""Draws from ranked lists against their definition: weights exp(-r / decay), one entry after the other, none twice."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distgnn.kernels.ranked_draw import draw_ranked
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention

N_DRAWS = 2_000 if IS_RERUN else 40_000


def drawn(lists: np.ndarray, row: np.ndarray, m: int, *, key: int = 7, decay: float = 20.0) -> np.ndarray:
    """Draws of edges (user row[b], item 3 b)."""
    out = np.full((len(row), m), -9, np.int32)
    item = 3 * np.arange(len(row))
    draw_ranked(np.uint64(key), row.astype(np.int64), item, lists, row.astype(np.int64), decay, out)
    return out


def chance_of_set(entries: tuple[int, ...], weight: np.ndarray) -> float:
    """That weighted draws without replacement give these entries, in any order."""
    total = 0.0
    for order in permutations(entries):
        chance, left = 1.0, weight.sum()
        for r in order:
            chance *= weight[r] / left
            left -= weight[r]
        total += chance
    return total


@pytest.mark.parametrize("m", [1, 2, 3])
def test_frequencies_are_those_of_draws_without_replacement(m: int) -> None:
    length, decay = 6, 2.0
    lists = np.array([[50, 40, 30, 20, 10, 0]], np.int32)
    out = drawn(lists, np.zeros(N_DRAWS, np.int64), m, decay=decay)
    rank = 5 - out // 10
    sets = list(combinations(range(length), m))
    weight = np.exp(-np.arange(length) / decay)
    expected = np.array([chance_of_set(entries, weight) for entries in sets])
    assert expected.sum() == pytest.approx(1)
    found = [(rank == entries).all(1).sum() for entries in sets]
    assert sum(found) == N_DRAWS  # each is a set of distinct entries, in the list's order
    assert stats.chisquare(found, expected * N_DRAWS).pvalue > 1e-4


@pytest.mark.parametrize("what", ["user", "item", "key"])
def test_each_edge_and_step_draws_anew(what: str) -> None:
    lists = np.arange(40, dtype=np.int32)[None]
    row, n = np.zeros(N_DRAWS // 40, np.int64), np.arange(N_DRAWS // 40)
    first = np.empty((len(row), 1), np.int32)
    for b in n:
        user, item = row[:1] + (b if what == "user" else 0), row[:1] + (b if what == "item" else 0)
        draw_ranked(np.uint64(b if what == "key" else 7), user, item, lists, row[:1], 1e9, first[b : b + 1])
    count = np.bincount(first[:, 0], minlength=40)
    assert stats.chisquare(count).pvalue > 1e-4


@given(seed=st.integers(0, 2**32), length=st.integers(1, 40), decay=st.floats(0.1, 1e6), data=st.data())
@settings(max_examples=20 if IS_RERUN else 100, deadline=None)
def test_entries_once_in_order_and_all_of_a_short_list(
    seed: int, length: int, decay: float, data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, length))
    rng = np.random.default_rng(seed)
    lists = np.full((5, length), -1, np.int32)
    sizes = np.array([0, length, *rng.integers(0, length + 1, 3)])
    for u, size in enumerate(sizes):
        lists[u, :size] = rng.choice(1000, size, replace=False)
    row = rng.integers(0, 5, 30)
    for u, out in zip(row, drawn(lists, row, m, key=seed, decay=decay), strict=True):
        n = min(m, sizes[u])
        assert (out[n:] == -1).all()
        position = [lists[u].tolist().index(i) for i in out[:n]]
        assert position == sorted(set(position))
        assert all(p < sizes[u] for p in position)


def test_a_draw_does_not_depend_on_the_other_edges() -> None:
    rng = np.random.default_rng(0)
    lists = rng.permuted(np.tile(np.arange(30, dtype=np.int32), (8, 1)), axis=1)
    lists[:, 25:] = -1
    user, item, row = rng.integers(0, 2**40, 60), rng.integers(0, 2**40, 60), rng.integers(0, 8, 60)

    def draw(edges: np.ndarray, lists: np.ndarray, row: np.ndarray) -> np.ndarray:
        out = np.empty((len(edges), 9), np.int32)
        draw_ranked(np.uint64(3), user[edges], item[edges], lists, row, 20.0, out)
        return out

    everything = draw(np.arange(60), lists, row)
    some = rng.permutation(60)[:20]
    assert (draw(some, lists, row[some]) == everything[some]).all()
    for b in range(60):  # another worker has other lists beside it
        alone = draw(np.array([b]), lists[row[b]][None], np.zeros(1, np.int64))
        assert (alone[0] == everything[b]).all()


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
