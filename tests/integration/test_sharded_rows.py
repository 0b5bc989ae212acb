"""Rows that are spread over workers train as those of one worker do, in two real gloo processes, in float64."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.checkpoint import list_checkpoints
from distgnn.training.trainer import PhaseTrainer
from tests.small_training import batch_of, small_config, small_features, small_graph, small_trainer
from tests.two_workers import to_the_end

GRAPH = small_graph(6)
STEPS, MORE = 15, 5
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 23, GRAPH.n_nodes]}
CASES = {
    "adagrad": ["optim.name=adagrad", "optim.lr=0.05"],
    "adagrad, messages": ["optim.name=adagrad", "optim.lr=0.05", "cluster.exchange=messages"],
    "adagrad, dense too, decay": [
        "optim.name=adagrad",
        "optim.lr=0.05",
        "optim.weight_decay=0.01",
        "model.encoder=graphsage",
        "model.tower=mlp",
        "loss.name=bpr",
    ],
    "adam": ["optim.name=adam"],
    "adam, messages": ["optim.name=adam", "cluster.exchange=messages"],
    "adam, hot rows": ["optim.name=adam", "cluster.hot_rows=9"],
    "adagrad, hot rows": ["optim.name=adagrad", "optim.lr=0.05", "cluster.hot_rows=0.3"],
    "sgd, decay, one hot row": [
        "optim.weight_decay=0.01",
        "optim.lr=0.5",
        "model.encoder=graphsage",
        "loss.name=bpr",
        "cluster.hot_rows=1",
    ],
    "sgd, all rows hot": ["optim.lr=0.5", "loss.negatives=uniform", "cluster.hot_rows=1000"],
    "adam, features": ["optim.name=adam"],
    "adam, features, messages": ["optim.name=adam", "cluster.exchange=messages"],
    "adam, features, hot rows": ["optim.name=adam", "cluster.hot_rows=9"],
}
HOT = {"adam, hot rows": 9, "adagrad, hot rows": int(0.3 * GRAPH.n_nodes), "sgd, decay, one hot row": 1}
HOT["sgd, all rows hot"] = GRAPH.n_nodes
HOT["adam, features, hot rows"] = 9
OTHER_HOT = "cluster.hot_rows=4"


def made(case: str, run: Path, group: WorkerGroup, *more: str) -> PhaseTrainer:
    features = small_features(GRAPH) if "features" in case else None
    config = small_config(*CASES[case], *more)
    return small_trainer(config, run, GRAPH, group, np.array(SIZES[group.size]), features=features)


def advance(trainer: PhaseTrainer, steps: int) -> np.ndarray:
    """This worker's part of every step's loss."""
    losses = []
    for _ in range(steps):
        losses.append(trainer.train_step(batch_of(trainer, trainer.step)).item())
        trainer.step += 1
    return np.array(losses)


def state(trainer: PhaseTrainer) -> dict[str, np.ndarray]:
    """What a worker owns, and the dense parameters."""
    result = {"weight": trainer.embedding.weight.numpy().copy()}
    result |= {f"moment{i}": moment.numpy().copy() for i, moment in enumerate(trainer.embedding.moments)}
    dense = trainer.model.named_parameters()
    return result | {f"dense {name}": value.detach().numpy().copy() for name, value in dense}


def resumed(case: str, run: Path, group: WorkerGroup, *more: str) -> np.ndarray:
    """Losses after the only checkpoint."""
    trainer = made(case, run, group, *more)
    (info,) = list_checkpoints(str(run))
    trainer.resume(info)
    return advance(trainer, MORE)


class Outbox(np.ndarray):
    """Notes what is put there because it does not lie there already."""

    copies: list[object]

    def __setitem__(self, key: object, value: object) -> None:
        self.copies.append(key)
        super().__setitem__(key, value)


def trained(case: str, run: Path, group: WorkerGroup) -> dict[str, np.ndarray]:
    """A worker's losses and state, its replicas, and how training goes on from a checkpoint."""
    trainer = made(case, run, group)
    shared, outbox = trainer.embedding._shared, np.empty((0, 1)).view(Outbox)
    if shared is not None:
        outbox = shared.outbox = shared.outbox.view(Outbox)
    outbox.copies = []
    losses = advance(trainer, STEPS)
    result = {"loss": losses, **state(trainer), "gradients put into the outbox": np.array([len(outbox.copies)])}
    trainer.save()
    embedding = trainer.embedding
    plan = embedding.plan(embedding.hot.nodes, trainer.bounds)
    result["hot nodes"] = embedding.hot.nodes
    result["replicas"] = embedding.fetch(plan).detach().numpy()
    result["shares memory"] = np.array([embedding.shares_memory])
    result["asked of owners"] = np.array([len(plan.exchange.rows)])
    result["loss after"] = advance(trainer, MORE)
    result["loss resumed"] = resumed(case, run, group)
    result["loss resumed with other hot rows"] = resumed(case, run, group, OTHER_HOT)
    return result


OF_MEMORY = ("shares memory", "gradients put into the outbox")


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The global run of its workers' results."""
    result = {}
    for name, value in parts[0].items():
        if name.startswith("loss"):
            result[name] = sum(p[name] for p in parts)
        elif name.startswith(("weight", "moment")):
            result[name] = np.concatenate([p[name] for p in parts])
        else:
            result[name] = value
            for part in parts[1:]:
                np.testing.assert_array_equal(part[name], value, err_msg=name)
    return result


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    for index, case in enumerate(CASES):
        np.savez(folder / f"{index}-{rank}.npz", **trained(case, folder / str(index), group))
    group.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case's results and checkpoint at two workers."""
    folder = tmp_path_factory.mktemp("rows")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=to_the_end, args=(worker, rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


def at_two(folder: Path, case: str) -> dict[str, np.ndarray]:
    index = list(CASES).index(case)
    return joined([dict(np.load(folder / f"{index}-{rank}.npz")) for rank in range(2)])


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


@pytest.mark.parametrize("case", CASES)
def test_two_workers_are_one(folder: Path, tmp_path: Path, group: WorkerGroup, case: str) -> None:
    one, two = trained(case, tmp_path, group), at_two(folder, case)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("loss"):
            np.testing.assert_allclose(two[name], value, rtol=1e-9, err_msg=name)
        elif name.startswith(("weight", "moment", "dense")):
            np.testing.assert_allclose(two[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    for run in (one, two):
        np.testing.assert_allclose(run["loss resumed"], run["loss after"], rtol=1e-12)
        np.testing.assert_allclose(run["loss resumed with other hot rows"], run["loss after"], rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_two_workers_goes_on_at_one(folder: Path, group: WorkerGroup, case: str) -> None:
    expected = at_two(folder, case)["loss after"]
    got = resumed(case, folder / str(list(CASES).index(case)), group)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("case", ["adam", "adam, features"])
def test_hot_rows_change_no_bit_at_two_workers(folder: Path, case: str) -> None:
    off, on = at_two(folder, case), at_two(folder, f"{case}, hot rows")
    for name in ("loss", "weight", "moment0", "moment1", "loss after"):
        np.testing.assert_array_equal(on[name], off[name], err_msg=name)


@pytest.mark.parametrize("case", ["adam", "adagrad", "adam, features"])
def test_shared_memory_and_messages_give_the_same_bits(folder: Path, case: str) -> None:
    memory, messages = at_two(folder, case), at_two(folder, f"{case}, messages")
    assert memory.keys() == messages.keys()
    assert [memory.pop(name).tolist() for name in OF_MEMORY] == [[True], [0]]
    assert [messages.pop(name).tolist() for name in OF_MEMORY] == [[False], [0]]
    for name, value in memory.items():
        np.testing.assert_array_equal(messages[name], value, err_msg=name)


@pytest.mark.parametrize("case", HOT)
def test_the_nodes_of_most_edges_are_replicated_and_not_fetched(folder: Path, case: str) -> None:
    two = at_two(folder, case)
    degree = GRAPH.degree(np.arange(GRAPH.n_nodes))
    by_rank = sorted(range(GRAPH.n_nodes), key=lambda node: (-degree[node], node))  # node ids: users, then items
    assert two["hot nodes"].tolist() == sorted(by_rank[: HOT[case]])
    assert two["asked of owners"].tolist() == [0]
    np.testing.assert_array_equal(two["replicas"], two["weight"][two["hot nodes"]])


def test_one_worker_holds_no_replica(tmp_path: Path, group: WorkerGroup) -> None:
    embedding = made("adam, hot rows", tmp_path, group).embedding
    assert embedding.n_rows == GRAPH.n_nodes
    assert len(embedding.hot.nodes) == 0
