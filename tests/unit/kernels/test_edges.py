"""Edge kernels against lists, jitted, as plain Python and with bounds checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.data.interactions import group_order
from distgnn.kernels.edges import find_in_rows, gather_rows, hash_pairs
from tests import naive_prepare
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention, also unjitted
_KEYS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))  # a key is a hash already


@given(seed=st.integers(0, 2**32), n_users=st.integers(1, 6), n_items=st.integers(1, 5), dtype=st.sampled_from("il"))
@settings(max_examples=50, deadline=None)
def test_gather_and_find_against_the_oracle(seed: int, n_users: int, n_items: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    edges = naive_prepare.random_edges(rng, n_users, n_items, 12)
    user, item = (np.array([edge[k] for edge in edges], dtype) for k in (0, 1))
    users, items = naive_prepare.stable_rows(edges, n_users, n_items)
    node_id = rng.permutation(n_users + n_items).astype(dtype)
    nodes = rng.permutation(n_users + n_items)
    user_offsets = np.searchsorted(user, np.arange(n_users + 1))
    item_offsets, by_item = group_order(item, n_items)
    indices, edge = np.empty(2 * len(edges), dtype), np.empty(2 * len(edges), np.int64)
    gather_rows(nodes, n_users, user_offsets, item_offsets, by_item, user, item, node_id, indices, edge)
    rows = [
        [(node_id[n_users + i], edges.index((n, i))) for i in users[n]]
        if n < n_users
        else [(node_id[u], edges.index((u, n - n_users))) for u in items[n - n_users]]
        for n in nodes
    ]
    assert list(zip(indices.tolist(), edge.tolist(), strict=True)) == [entry for row in rows for entry in row]

    stable_id = np.empty(n_users + n_items, dtype)
    stable_id[node_id] = np.concatenate([np.arange(n_users), np.arange(n_items)])
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    row = np.repeat(np.arange(len(nodes)), 7)
    wanted = np.tile(np.arange(7), len(nodes))
    found = np.empty(len(row), bool)
    find_in_rows(row, wanted, indptr, indices, stable_id, found)
    neighbours = [{int(stable_id[node]) for node, _ in r} for r in rows]
    assert found.tolist() == [w in neighbours[r] for r, w in zip(row.tolist(), wanted.tolist(), strict=True)]


def test_pair_hashes_differ_and_follow_the_key() -> None:
    left, right = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(50)))
    one, two = np.empty(2000, np.uint64), np.empty(2000, np.uint64)
    hash_pairs(_KEYS[0], left, right, one)
    hash_pairs(_KEYS[1], left, right, two)
    assert len({*one.tolist(), *two.tolist()}) == 4000
    swapped = np.empty(2000, np.uint64)
    hash_pairs(_KEYS[0], right, left, swapped)
    assert (swapped == one).sum() == (left == right).sum()


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
