from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.partition.book import relabel
from distgnn.types import UserError
from tests import naive_prepare

parts = st.integers(1, 6).flatmap(
    lambda p: st.tuples(st.just(p), st.lists(st.integers(0, p - 1), min_size=1, max_size=30), st.integers(0, 30))
)


@given(parts)
@settings(deadline=None)
def test_relabel_against_the_oracle(case: tuple[int, list[int], int]) -> None:
    n_parts, part, n_users = case[0], case[1], min(case[2], len(case[1]))
    book = relabel(np.array(part, np.int32), n_users, n_parts)
    offsets, stable_id, node_id = naive_prepare.relabelled(part, n_users, n_parts)
    assert book.offsets.tolist() == offsets.tolist()
    assert book.stable_id.tolist() == stable_id.tolist()
    assert book.node_id.tolist() == node_id.tolist()
    assert book.stable_id.dtype == book.node_id.dtype == np.int32
    nodes = np.arange(len(part))
    assert book.part_of(nodes)[book.node_id].tolist() == part
    assert (book.n_users, book.n_items, book.n_nodes) == (n_users, len(part) - n_users, len(part))


@given(parts, st.integers(1, 6))
@settings(deadline=None)
def test_worker_bounds_are_ranges_of_whole_partitions(case: tuple[int, list[int], int], workers: int) -> None:
    n_parts, part = case[0], case[1]
    book = relabel(np.array(part, np.int32), len(part), n_parts)
    if workers > n_parts:
        with pytest.raises(UserError, match=f"cluster.workers = {workers}, but the graph has {n_parts} partitions"):
            book.worker_bounds(workers)
        return
    bounds = book.worker_bounds(workers)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(part), workers + 1)
    for node in range(len(part)):
        p = int(book.part_of(np.array([node]))[0])
        (owner,) = (r for r in range(workers) if r * n_parts // workers <= p < (r + 1) * n_parts // workers)
        assert bounds[owner] <= node < bounds[owner + 1]
