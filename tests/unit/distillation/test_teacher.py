"""The teacher's lists against a full sort."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distgnn.distillation.teacher import load_teacher, top_lists
from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.inference import OwnNodes
from distgnn.types import USER, UserError
from tests.small_exports import small_dataset, small_export
from tests.unit.graphs import partitioned, random_edges

N_USERS, N_ITEMS, DIM = 40, 25, 5


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(n, DIM)).astype(np.float32) for n in (N_USERS, N_ITEMS))


@pytest.mark.parametrize("top", [1, 7, 25, 100])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_lists_are_a_full_sort_without_seen_items(group: WorkerGroup, top: int, n_parts: int) -> None:
    user, item = random_edges(0, N_USERS, N_ITEMS, 400)
    user, item = np.concatenate([user, np.zeros(N_ITEMS, np.int64)]), np.concatenate([item, np.arange(N_ITEMS)])
    user, item = np.unique(np.stack([user, item]), axis=1)  # user 0 has everything
    graph, _ = partitioned(user, item, N_USERS, N_ITEMS, n_parts)
    users, items = vectors()
    stable = np.random.default_rng(2).permutation(N_USERS)
    lists = top_lists(users[stable], graph.node_id[stable].astype(np.int64), items, graph, top, group)
    assert lists.dtype == np.int32
    assert lists.shape == (N_USERS, min(top, N_ITEMS))
    for row, u in zip(lists, stable, strict=True):
        seen = set(item[user == u].tolist())
        best = [i for i in np.argsort(-(items @ users[u])) if i not in seen][:top]
        assert row.tolist() == best + [-1] * (lists.shape[1] - len(best))
    assert (lists[stable == 0] == -1).all()


def test_a_teacher_that_diverged_is_refused(group: WorkerGroup) -> None:
    graph, _ = partitioned(*random_edges(0, N_USERS, N_ITEMS, 200), N_USERS, N_ITEMS, 1)
    users, items = vectors()
    users[3, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        top_lists(users, graph.node_id[:N_USERS].astype(np.int64), items, graph, 5, group)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_keeps_its_own_rows_and_all_items(tmp_path: Path, rank: int, dtype: str) -> None:
    export = small_export(tmp_path, dtype, phase="fit")
    (tmp_path / "again").mkdir()
    dataset = small_dataset(tmp_path / "again")  # the same log
    graph = dataset.topology("fit", "random", 2)
    own = OwnNodes(graph, dataset.book("random", 2).worker_bounds(2), rank)
    teacher = load_teacher(str(tmp_path / "run"), own)
    assert (teacher.phase, teacher.model, teacher.dim) == ("fit", "random", 6)
    assert (teacher.items == export.items.values.astype(np.float32)).all()
    assert teacher.row_bytes == 6 * np.dtype(dtype).itemsize
    for kind, stable, row in zip(own.node_type, own.stable_id, teacher.own, strict=True):
        table = export.users if kind == USER else export.items
        assert (row == table.values[stable]).all()
