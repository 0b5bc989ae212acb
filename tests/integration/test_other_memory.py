"""Training with the model in a memory of its own is training on the host, wherever the tables are.

What a GPU would refuse raises here (see `tests/other_memory.py`): operations on tensors of both memories, host tensors
over NCCL, a GPU's over gloo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training import trainer as trainer_module
from distgnn.training.checkpoint import list_checkpoints
from tests.other_memory import OTHER, MixedMemories, OtherTensor, other_memory
from tests.small_training import small_config, small_features, small_graph, small_trainer
from tests.two_workers import run_two_workers

GRAPH = small_graph(5)
TABLES = {"device": OTHER, "host": torch.device("cpu")}
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 17, GRAPH.n_nodes]}
STEPS = 6
MODELS = {
    "lightgcn, in-batch softmax with logq, adam": ["optim.name=adam", "loss.logq=true"],
    "lightgcn, bpr, adagrad": [
        "loss.name=bpr",
        "optim.name=adagrad",
        "loss.num_negatives=2",
        "optim.weight_decay=0.01",
    ],
    "lightgcn, bpr, adam, hot rows": ["loss.name=bpr", "optim.name=adam", "cluster.hot_rows=10"],
    "lightgcn, bpr, sgd, bfloat16": ["loss.name=bpr", "run.dtype=float32", "cluster.wire=bfloat16"],
    "lightgcn, directau, adam": ["loss.name=directau", "optim.name=adam"],
    "lightgcn, bpr, adam, features, hot rows": ["loss.name=bpr", "optim.name=adam", "cluster.hot_rows=10"],
    "graphsage, towers, dropout, shared softmax, adam": [
        "model.encoder=graphsage",
        "model.tower=mlp",
        "model.dropout=0.3",
        "loss.negatives=shared",
        "loss.num_negatives=5",
        "optim.name=adam",
    ],
    "pyg, dropout, bpr, adam": [
        "model.encoder=torch_geometric.nn.SAGEConv",
        "model.dropout=0.3",
        "loss.name=bpr",
        "optim.name=adam",
    ],
}


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Stable (users, items) that are no edges."""
    pairs = [(u, i) for u in range(1, GRAPH.n_users) for i in range(GRAPH.n_items) if (u + i) % 7 == 0]
    nodes = np.asarray(GRAPH.node_id)
    kept = [(u, i) for u, i in pairs if nodes[GRAPH.n_users + i] not in GRAPH.row(int(nodes[u]))]
    return np.array([u for u, _ in kept]), np.array([i for _, i in kept])


def plain(tensor: torch.Tensor) -> np.ndarray:
    """Values, wherever they are."""
    inside = tensor.inside if isinstance(tensor, OtherTensor) else tensor
    return inside.detach().numpy().copy()


def everything(model: str, run: Path, group: WorkerGroup, tables: torch.device | None) -> dict[str, Any]:
    """Train, write a checkpoint, go on from it in another trainer, infer and evaluate."""
    bounds = np.array(SIZES[group.size])
    config = small_config(*MODELS[model])
    features = small_features(GRAPH) if "features" in model else None

    first = small_trainer(config, run, GRAPH, group, bounds, tables, features)
    first.train(99, None, STEPS)
    (info,) = list_checkpoints(str(run))
    second = small_trainer(config, run, GRAPH, group, bounds, tables, features)
    second.resume(info)
    second.train(99, None, 2 * STEPS)
    place = group.device if tables is None else tables
    vectors, sampled = second.vectors(), second.vectors(sampled=True)
    assert {t.device for t in (second.embedding.weight, *second.embedding.moments, vectors, sampled)} == {place}
    assert all(p.device == group.device for p in second.model.parameters())
    return {
        "rows": plain(second.embedding.weight),
        "vectors": plain(vectors),
        "sampled": plain(sampled),
        "dense": np.concatenate([np.zeros(1), *(plain(p).ravel() for p in second.model.parameters())]),
        "metrics": np.array(list(second.evaluate(held_out()).metrics.values())),
    }


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # the stand-in does copy
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("model", MODELS)
def test_one_worker(
    tmp_path: Path, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch, model: str, tables: str
) -> None:
    monkeypatch.setattr(trainer_module, "wrap", lambda module, group: module)  # DDP wants a device that it knows
    expected = everything(model, tmp_path / "host", group, None)
    with other_memory(group) as (split, _):
        got = everything(model, tmp_path / "other", split, TABLES[tables])
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    trainer_module.wrap = lambda module, group: module  # type: ignore[assignment]  # the same is not summed everywhere
    for index, model in enumerate(list(MODELS)[:6]):
        np.savez(folder / f"{index}-plain-{rank}.npz", **everything(model, folder / f"{index}-plain", group, None))
        for name, tables in TABLES.items():
            with other_memory(group) as (split, seen):
                result = everything(model, folder / f"{index}-{name}", split, tables)
            result["seen"] = np.array(sorted(set(seen)))
            np.savez(folder / f"{index}-{name}-{rank}.npz", **result)
    group.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memories")
    run_two_workers(worker, folder)
    return folder


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5])
def test_two_workers(folder: Path, index: int, tables: str) -> None:
    for rank in range(2):
        got, expected = (np.load(folder / f"{index}-{name}-{rank}.npz") for name in (tables, "plain"))
        for name in expected.files:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
        # Item blocks go with the tables; so do rows and gradients, while outputs are gathered over NCCL anyway.
        assert ("broadcast over NCCL" in got["seen"]) == (tables == "device")
        assert ("all_to_all_single over NCCL" in got["seen"]) == (tables == "device" or index in (0, 4))
        assert "all_to_all_single over gloo" in got["seen"]


def test_the_stand_in_refuses_what_a_gpu_would(group: WorkerGroup) -> None:
    with other_memory(group) as (split, _):
        other, host = torch.ones(3, device=OTHER), torch.ones(3)
        assert (other + other).cpu().tolist() == [2, 2, 2]
        with pytest.raises(MixedMemories, match="both memories"):
            _ = other + host
        with pytest.raises(MixedMemories, match="both memories"):
            other.index_select(0, torch.tensor([1]))
        with pytest.raises(RuntimeError, match="numpy"):
            other.numpy()
        with pytest.raises(MixedMemories, match="broadcast over NCCL of cpu tensors"):
            dist.broadcast(host, src=0, group=split.default)
        with pytest.raises(MixedMemories, match="all_reduce over NCCL of cpu tensors"):
            dist.all_reduce(host, group=split.gather)
        with pytest.raises(MixedMemories, match="all_reduce over gloo of meta tensors"):
            dist.all_reduce(other, group=split.cpu)
