"""Rows that are spread over workers train as those of one worker do, in two real gloo processes, in float64."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from distgnn.distributed.process_group import WorkerGroup
from tests.small_training import batch_of, small_config, small_graph, small_trainer

GRAPH = small_graph(6)
STEPS = 15
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 23, GRAPH.n_nodes]}
CASES = {
    "adagrad": ["optim.name=adagrad", "optim.lr=0.05"],
    "adagrad, dense too, decay": [
        "optim.name=adagrad",
        "optim.lr=0.05",
        "optim.weight_decay=0.01",
        "model.encoder=graphsage",
        "model.tower=mlp",
        "loss.name=bpr",
    ],
}


def trained(overrides: list[str], run: Path, group: WorkerGroup) -> dict[str, np.ndarray]:
    """This worker's part of every step's loss, and what it then owns."""
    trainer = small_trainer(small_config(*overrides), run, GRAPH, group, np.array(SIZES[group.size]))
    losses = [trainer.train_step(batch_of(trainer, step)).item() for step in range(STEPS)]
    result = {"loss": np.array(losses), "weight": trainer.embedding.weight.numpy().copy()}
    result |= {f"moment{i}": moment.numpy().copy() for i, moment in enumerate(trainer.embedding.moments)}
    result |= {f"dense {name}": value.detach().numpy() for name, value in trainer.model.named_parameters()}
    return result


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The global run of its workers' results."""
    result = {}
    for name, value in parts[0].items():
        if name == "loss":
            result[name] = sum(p[name] for p in parts)
        elif name.startswith("dense "):
            result[name] = value
            for part in parts[1:]:
                np.testing.assert_array_equal(part[name], value)
        else:
            result[name] = np.concatenate([p[name] for p in parts])
    return result


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    for index, overrides in enumerate(CASES.values()):
        np.savez(folder / f"{index}-{rank}.npz", **trained(overrides, folder, group))
    group.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case's results at two workers."""
    folder = tmp_path_factory.mktemp("rows")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


def at_two(folder: Path, case: str) -> dict[str, np.ndarray]:
    index = list(CASES).index(case)
    return joined([dict(np.load(folder / f"{index}-{rank}.npz")) for rank in range(2)])


def at_one(run: Path, overrides: list[str]) -> dict[str, np.ndarray]:
    group = WorkerGroup.join(0, 1)
    try:
        return trained(overrides, run, group)
    finally:
        group.leave()


@pytest.mark.parametrize("case", CASES)
def test_two_workers_are_one(folder: Path, tmp_path: Path, case: str) -> None:
    one, two = at_one(tmp_path, CASES[case]), at_two(folder, case)
    assert one.keys() == two.keys()
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-9)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
