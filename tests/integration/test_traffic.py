"""Bytes and exchanges that are reported are those that are sent, counted by hand on a tiny graph."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distgnn.distributed.process_group import WorkerGroup
from tests.small_training import batch_of, small_config, small_features, small_graph, small_trainer
from tests.two_workers import to_the_end

GRAPH = small_graph(7)
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 23, GRAPH.n_nodes]}
DIM, ITEM = 6, 8
STEPS = 4
HOT = 7
CASES = {
    "in-batch softmax": ["loss.name=sampled_softmax"],
    "bpr": ["loss.name=bpr"],
    "directau": ["loss.name=directau"],
    "hot rows": ["loss.name=bpr", f"cluster.hot_rows={HOT}"],
    "bfloat16": ["loss.name=bpr", "run.dtype=float32", "cluster.wire=bfloat16"],
    "features": ["loss.name=bpr"],
    "features of items, hot rows": ["loss.name=bpr", f"cluster.hot_rows={HOT}"],
    "features, bfloat16": ["loss.name=bpr", "run.dtype=float32", "cluster.wire=bfloat16"],
    "features, cache": ["loss.name=bpr", "cluster.feature_cache=9"],
}
MEMORY = {"memory": ["loss.name=bpr", "cluster.exchange=memory"]}
MEMORY["memory, features"] = MEMORY["memory"]
WIDTHS = {
    "features": (3, 5),
    "memory, features": (3, 5),
    "features of items, hot rows": (0, 5),
    "features, bfloat16": (3, 5),
    "features, cache": (3, 5),
}  # users', items'


def record_sent(sent: list[int], rank: int) -> Any:
    """An all_to_all_single that notes the bytes for others."""
    real = dist.all_to_all_single

    def call(output: torch.Tensor, given: torch.Tensor, **kwargs: Any) -> Any:
        splits = kwargs.get("input_split_sizes") or [len(given) // 2] * 2
        sent.append(splits[1 - rank] * given[0:1].numel() * given.element_size() if len(given) else 0)
        return real(output, given, **kwargs)

    return call


def measured(case: str, run: Path, group: WorkerGroup) -> dict[str, Any]:
    """A worker's count, what it has sent, and the nodes and columns that it takes from others."""
    features = small_features(GRAPH, *WIDTHS[case]) if case in WIDTHS else None
    config = small_config("cluster.exchange=messages", *(CASES | MEMORY)[case])
    trainer = small_trainer(config, run, GRAPH, group, np.array(SIZES[group.size]), features=features)
    sent: list[int] = []
    wanted = featured = featured_users = columns = distinct = 0
    cached = trainer.features.cached.nodes if trainer.features else []
    with mock.patch.object(dist, "all_to_all_single", record_sent(sent, group.rank)):
        for step in range(STEPS):
            batch = batch_of(trainer, step)
            trainer.train_step(batch)
            low, high = SIZES[group.size][group.rank : group.rank + 2]
            foreign = (batch.nodes < low) | (batch.nodes >= high)
            fetched = foreign & ~np.isin(batch.nodes, trainer.embedding.hot.nodes)
            wanted += int(fetched.sum())
            fetched &= ~np.isin(batch.nodes, cached)
            featured += int(fetched.sum())
            featured_users += int((fetched & (batch.nodes < GRAPH.n_users)).sum())
            columns += batch.global_size - len(batch.share)
            seeds = trainer.order.seeds(step)
            owner = np.searchsorted(SIZES[group.size], seeds.global_user, side="right") - 1
            in_rank_order = np.argsort(owner, kind="stable")
            for nodes in (seeds.global_user, seeds.global_item):
                first = np.unique(nodes[in_rank_order], return_index=True)[1]
                distinct += int((owner[in_rank_order][first] != group.rank).sum())
    traffic = trainer.totals.traffic
    return {
        "bytes": traffic.bytes,
        "exchanges": traffic.exchanges,
        "over workers": traffic.over_workers(group),
        "sent": sent,
        "wanted": wanted,
        "featured": featured,
        "featured users": featured_users,
        "columns": columns,
        "distinct": distinct,
    }


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    results = [measured(case, folder, group) for case in CASES | MEMORY]
    (folder / f"{rank}.json").write_text(json.dumps(results))
    group.leave()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Both workers' results of every case."""
    folder = tmp_path_factory.mktemp("traffic")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=to_the_end, args=(worker, rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {case: [r[index] for r in both] for index, case in enumerate(CASES | MEMORY)}


def summed(found: list[dict[str, Any]]) -> dict[str, int]:
    """The workers' counts together."""
    return {kind: sum(f["bytes"][kind] for f in found) for kind in found[0]["bytes"]}


@pytest.mark.parametrize("case", CASES)
def test_what_is_counted_is_what_was_sent(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    found = results[case]
    total = summed(found)
    assert total == found[0]["over workers"] == found[1]["over workers"]
    assert sum(total.values()) == sum(sum(f["sent"]) for f in found)
    for f in found:
        assert sum(f["exchanges"].values()) == len(f["sent"])


@pytest.mark.parametrize("case", CASES)
def test_rows_gradients_and_outputs_by_hand(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    found = results[case]
    total = summed(found)
    wanted = sum(f["wanted"] for f in found)
    assert wanted > 20 * STEPS
    wire = 2 if case.endswith("bfloat16") else ITEM
    assert total["rows"] == 2 * STEPS * 8 + wanted * (8 + DIM * wire)
    hot = HOT if case.endswith("hot rows") else 0  # a value more a row tells who was touched
    assert total["gradients"] == wanted * DIM * wire + 2 * STEPS * hot * (DIM + 1) * ITEM
    featured, users = (sum(f[name] for f in found) for name in ("featured", "featured users"))
    assert 0 < users < featured <= wanted
    assert (featured < wanted) == case.endswith("cache")
    user_width, item_width = WIDTHS.get(case, (0, 0))
    values = users * user_width + (featured - users) * item_width
    assert total["features"] == values * (2 if case.endswith("bfloat16") else 4)  # float32, whatever run.dtype
    columns, distinct = (sum(f[name] for f in found) for name in ("columns", "distinct"))
    gathered, gathers = {
        "in-batch softmax": (2 * columns * DIM * ITEM, 2),
        # Both ids of every edge, distinct rows and their gradients, two sums.
        "directau": (16 * columns + 2 * distinct * DIM * ITEM + 2 * STEPS * 2 * ITEM, 4),
    }.get(case, (0, 0))
    assert total["gathered"] == gathered
    assert found[0]["exchanges"] == {
        "topology": 0,
        "features": STEPS if case in WIDTHS else 0,
        "rows": 3 * STEPS,
        "gradients": 3 * STEPS if hot else STEPS,
        "gathered": gathers * STEPS,
    }


def test_what_is_read_and_left_in_shared_memory_is_counted(results: dict[str, list[dict[str, Any]]]) -> None:
    found = results["memory"]
    wanted = sum(f["wanted"] for f in found)
    assert wanted > 20 * STEPS
    assert summed(found)["rows"] == wanted * DIM * ITEM
    assert summed(found)["gradients"] == wanted * (16 + DIM * ITEM)
    assert [found[0]["exchanges"][kind] for kind in ("rows", "gradients")] == [STEPS, STEPS]
    assert found[0]["sent"] == found[1]["sent"] == []


def test_features_are_sent_beside_rows_in_shared_memory(results: dict[str, list[dict[str, Any]]]) -> None:
    memory, messages = (summed(results[case]) for case in ("memory, features", "features"))
    assert memory["features"] == messages["features"] > 0
    assert memory["rows"] == messages["rows"]
    assert sum(sum(f["sent"]) for f in results["memory, features"]) == memory["features"] + sum(
        8 * f["wanted"] + 8 * STEPS for f in results["memory, features"]
    )


def test_one_worker_exchanges_nothing(tmp_path: Path) -> None:
    group = WorkerGroup.join(0, 1)
    try:
        found = measured("features", tmp_path, group)
    finally:
        group.leave()
    assert sum(found["bytes"].values()) == sum(found["exchanges"].values()) == 0
