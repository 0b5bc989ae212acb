"""Rows that are spread over workers become one export, whatever their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.export import writer
from distgnn.export.reader import read_export
from distgnn.export.table import Table, quantize_rows
from distgnn.partition.dataset import PreparedDataset
from distgnn.training import export
from distgnn.training.inference import OwnNodes
from distgnn.training.launch import on_local_workers
from distgnn.types import USER
from tests.small_exports import random_tables, small_dataset


def export_job(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Every worker exports its own rows of the same random vectors: floating point or int8, as the run's name says."""
    export.CHUNK_ROWS = writer.CHUNK_ROWS = 6
    topology = dataset.topology("full", "random", config.parts)
    own = OwnNodes(topology, dataset.book("random", config.parts).worker_bounds(group.size), group.rank)
    users, items = random_tables(dataset, "float32")
    is_user = own.node_type == USER
    rows = np.empty((len(own.nodes), users.dim), np.float32)
    rows[is_user], rows[~is_user] = users.values[own.stable_id[is_user]], items.values[own.stable_id[~is_user]]
    table = quantize_rows(rows) if "int8" in run else Table(rows)
    for model in ("first", "second"):  # the second replaces the first
        export.export_workers_rows(
            run, group, model=model, dataset=dataset, phase="full", topology=topology, own=own, rows=table
        )
    return {}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_workers_export_what_one_would(tmp_path: Path, workers: int, dtype: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "CHUNK_ROWS", 6)
    monkeypatch.setattr(writer, "CHUNK_ROWS", 6)
    dataset = small_dataset(tmp_path, parts=3)
    config = load_config(None, [f"cluster.workers={workers}", "partition.parts=3", "partition.method=random"])
    run = str(tmp_path / dtype)
    on_local_workers("tests.integration.test_export:export_job", config, run, dataset)
    found = read_export(run)
    users, items = random_tables(dataset, dtype)
    if dtype == "int8":
        users, items = (quantize_rows(t.values) for t in random_tables(dataset, "float32"))
    alone = str(tmp_path / "alone")
    writer.write_export(alone, model="second", dataset=dataset, phase="full", users=users, items=items)
    expected = read_export(alone)
    assert found.manifest["model"] == "second"
    for a, b in ((found.users, expected.users), (found.items, expected.items)):
        assert (a.dequantize() == b.dequantize()).all()
    assert found.user_keys == expected.user_keys
    assert (found.seen_items == expected.seen_items).all()
    assert (found.seen_indptr == expected.seen_indptr).all()
    np.testing.assert_allclose(found.fold_in, expected.fold_in, rtol=1e-4, atol=1e-4)
