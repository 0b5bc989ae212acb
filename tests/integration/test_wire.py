"""bfloat16 on the wire rounds what other workers own, and nothing else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from distgnn.distributed.process_group import WorkerGroup
from tests.small_training import batch_of, small_config, small_graph, small_trainer
from tests.two_workers import to_the_end

GRAPH = small_graph(8)
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 23, GRAPH.n_nodes]}
HOT = 5
STEPS = 20


def made(run: Path, group: WorkerGroup, *overrides: str):
    options = ["run.dtype=float32", "optim.lr=1.0", "cluster.wire=bfloat16", *overrides]
    return small_trainer(small_config(*options), run, GRAPH, group, np.array(SIZES[group.size]))


def gradient(rank: int) -> np.ndarray:
    """A gradient of every node's row, float32 `[N, 6]`."""
    return np.random.default_rng(rank).normal(size=(GRAPH.n_nodes, 6)).astype(np.float32)


def results(run: Path, group: WorkerGroup) -> dict[str, np.ndarray]:
    """All rows as a worker gets them, the own ones before and after everybody's gradient, and a loss curve."""
    embedding = made(run, group, f"cluster.hot_rows={HOT}").embedding
    plan = embedding.plan(np.arange(GRAPH.n_nodes), np.array(SIZES[group.size]))
    result = {"hot": embedding.hot.nodes, "before": embedding.weight.numpy().copy()}
    result["fetched"] = embedding.fetch(plan).detach().numpy()
    embedding.apply_gradient(plan, torch.from_numpy(gradient(group.rank)), 1)
    result["after"] = embedding.weight.numpy().copy()
    for wire in ("float32", "bfloat16"):
        trainer = made(run, group, "optim.lr=0.5", f"cluster.wire={wire}")
        losses = [trainer.train_step(batch_of(trainer, step)).item() for step in range(STEPS)]
        result[f"loss {wire}"] = np.array(losses)
    return result


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    np.savez(folder / f"{rank}.npz", **results(folder, group))
    group.leave()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("wire")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=to_the_end, args=(worker, rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


def exact_at(rank: int, hot: np.ndarray) -> np.ndarray:
    """Which nodes' rows cross no wire for a worker: its own, and hot ones."""
    low, high = SIZES[2][rank : rank + 2]
    nodes = np.arange(GRAPH.n_nodes)
    return ((nodes >= low) & (nodes < high)) | np.isin(nodes, hot)


def test_rows_of_others_are_rounded(both: list[dict[str, np.ndarray]]) -> None:
    table = np.concatenate([r["before"] for r in both])
    for rank, result in enumerate(both):
        exact = exact_at(rank, result["hot"])
        assert HOT <= exact.sum() < GRAPH.n_nodes
        np.testing.assert_array_equal(result["fetched"], np.where(exact[:, None], table, rounded(table)))
    assert (rounded(table) != table).mean() > 0.9


def test_gradients_for_others_are_rounded(both: list[dict[str, np.ndarray]]) -> None:
    table = np.concatenate([r["before"] for r in both])
    total = np.zeros_like(table)
    for rank, result in enumerate(both):
        exact = exact_at(rank, result["hot"])[:, None]
        total += np.where(exact, gradient(rank), rounded(gradient(rank)))
    moved = np.concatenate([r["after"] for r in both])
    np.testing.assert_allclose(moved, table - total, rtol=1e-6, atol=1e-6)


def test_training_stays_near(both: list[dict[str, np.ndarray]]) -> None:
    exact, lossy = (sum(r[f"loss {wire}"] for r in both) for wire in ("float32", "bfloat16"))
    assert not np.array_equal(exact, lossy)
    np.testing.assert_allclose(lossy, exact, rtol=0.01)


def test_one_worker_has_no_wire(tmp_path: Path) -> None:
    group = WorkerGroup.join(0, 1)
    try:
        one = results(tmp_path, group)
    finally:
        group.leave()
    np.testing.assert_array_equal(one["fetched"], one["before"])
    np.testing.assert_array_equal(one["loss bfloat16"], one["loss float32"])
