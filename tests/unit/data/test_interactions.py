from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.data.interactions import deduplicate, group_order
from tests import naive_prepare

N_USERS, N_ITEMS = 5, 4
event = st.tuples(
    st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(-5, 5), st.integers(0, 8).map(lambda w: w / 4)
)


def run(logs, columns=True):
    rows = [row for log in logs for row in log]
    user, item, time, weight = (
        np.array([row[k] for row in rows], dtype) for k, dtype in enumerate((np.int32, np.int32, np.int64, np.float32))
    )
    return deduplicate(
        user, item, time if columns else None, weight if columns else None, N_USERS, N_ITEMS, [len(log) for log in logs]
    )


@given(logs=st.lists(st.lists(event, max_size=30), min_size=1, max_size=3).filter(any), columns=st.booleans())
@settings(deadline=None)
def test_deduplicate_against_the_oracle(logs, columns) -> None:
    got = run(logs, columns)
    expected = naive_prepare.deduplicate(logs)
    pairs = sorted(expected)
    assert list(zip(got.edges.user.tolist(), got.edges.item.tolist(), strict=True)) == pairs
    assert got.source.tolist() == [expected[pair][0] for pair in pairs]
    if columns:
        assert got.edges.timestamp.tolist() == [expected[pair][1] for pair in pairs]
        assert got.edges.weight.tolist() == [expected[pair][2] for pair in pairs]
        assert got.edges.weight.dtype == np.float32
    else:
        assert got.edges.timestamp is None
        assert got.edges.weight is None
    rows = [row[:2] for log in logs for row in log]
    assert got.first_row.tolist() == [rows.index(pair) for pair in pairs]
    distinct = [{row[:2] for row in log} for log in logs]
    assert got.duplicates == len(rows) - sum(map(len, distinct))
    earlier = [set().union(*distinct[:k]) for k in range(len(logs))]
    assert got.dropped == [len(mine & before) for mine, before in zip(distinct, earlier, strict=True)]


@given(st.lists(st.integers(0, 6), max_size=50), st.randoms())
@settings(deadline=None)
def test_group_order_is_a_stable_sort(groups, random) -> None:
    order = list(range(len(groups)))
    random.shuffle(order)
    offsets, placed = group_order(np.array(groups, np.int32), 7, np.array(order, np.int32))
    assert placed.tolist() == sorted(order, key=lambda e: groups[e])
    assert offsets.tolist() == [sum(g < k for g in groups) for k in range(8)]
    assert group_order(np.array(groups, np.int32), 7)[1].tolist() == sorted(range(len(groups)), key=groups.__getitem__)


def test_select_keeps_absent_columns_absent() -> None:
    got = run([[(0, 0, 1, 1.0), (1, 1, 1, 1.0)]], columns=False).edges.select(np.array([False, True]))
    assert got.user.tolist() == [1]
    assert got.timestamp is None


@pytest.mark.parametrize("order", [0, 1])
def test_the_order_of_a_log_changes_no_edge(order: int) -> None:
    log = [(0, 1, 5, 1.0), (2, 3, 1, 1.0), (0, 1, 2, 2.0), (4, 0, 0, 0.0)]
    edges = run([log[::-1] if order else log]).edges
    assert edges.timestamp.tolist() == [2, 1, 0]
    assert edges.weight.tolist() == [3.0, 1.0, 0.0]
