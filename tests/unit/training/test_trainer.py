"""What a trainer counts by the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from tests.small_training import batch_of, small_config, small_trainer


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


@pytest.mark.parametrize("missing", [0, 1])
def test_edges_of_users_with_every_item_are_counted(group: WorkerGroup, tmp_path: Path, missing: int) -> None:
    user = np.concatenate([np.zeros(10 - missing, np.int64), np.arange(1, 31)])
    item = np.concatenate([np.arange(10 - missing), np.arange(30) % 10])
    graph = Topology.from_edges(user, item, 31, 10)
    trainer = small_trainer(small_config("loss.name=bpr"), tmp_path, graph, group)
    for step in range(trainer.order.steps_per_epoch):
        trainer.train_step(batch_of(trainer, step))
    assert trainer.totals.positives == graph.n_edges
    assert trainer.totals.users_with_every_item == (0 if missing else 10)
