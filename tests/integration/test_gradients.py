"""Raw gradients of one step are those of one worker, in two real gloo processes, in float64.

Plain gradients and not losses or Adam's steps: Adam hides a wrong scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distgnn.distributed.process_group import WorkerGroup
from distgnn.nn.batch import block_tensors, dropout_key, node_keys
from distgnn.training.objective import loss_of
from tests.small_training import batch_of, small_config, small_features, small_graph, small_trainer
from tests.two_workers import run_two_workers

GRAPH = small_graph(4)
STEP = 3
LEARNING_RATE = 1.0

MODELS = {
    "lightgcn": ["model.encoder=lightgcn"],
    "gcn": ["model.encoder=gcn", "model.dropout=0.3"],
    "graphsage and towers": ["model.encoder=graphsage", "model.tower=mlp", "model.dropout=0.3"],
}
FEATURES = {
    "lightgcn and features": small_features(GRAPH, 3, 5),
    "towers and features of items": small_features(GRAPH, 0, 5),
}
MODELS["lightgcn and features"] = ["model.encoder=lightgcn"]
MODELS["towers and features of items"] = ["model.encoder=graphsage", "model.tower=mlp", "cluster.hot_rows=8"]
LOSSES = {
    "in-batch softmax": ["loss.name=sampled_softmax"],
    "in-batch softmax with logq": ["loss.name=sampled_softmax", "loss.logq=true"],
    "uniform bpr": ["loss.name=bpr", "loss.num_negatives=2"],
    "shared softmax": ["loss.name=sampled_softmax", "loss.negatives=shared", "loss.num_negatives=5"],
    "directau": ["loss.name=directau", "loss.uniformity=0.7"],
    "shared bpr": ["loss.name=bpr", "loss.negatives=shared", "loss.num_negatives=5"],
}
BOUNDS = {
    "even": [0, GRAPH.n_users // 2, GRAPH.n_nodes],
    "uneven": [0, 3, GRAPH.n_nodes],
    "one without users": [0, GRAPH.n_users, GRAPH.n_nodes],  # its share is empty at every step
    "one without nodes": [0, GRAPH.n_nodes, GRAPH.n_nodes],
}
CASES = [(model, loss, "even") for model in MODELS for loss in LOSSES]
CASES += [
    (model, loss, b)
    for model in ("lightgcn", "graphsage and towers", "lightgcn and features")
    for loss in LOSSES
    for b in list(BOUNDS)[1:]
]


def one_step(model: str, loss: str, bounds: list[int], run: Path, group: WorkerGroup) -> dict[str, np.ndarray]:
    """This worker's loss, the size of its share, its rows' gradients and the summed dense gradients."""
    overrides = [f"optim.lr={LEARNING_RATE}", *MODELS[model], *LOSSES[loss]]
    config, features = small_config(*overrides), FEATURES.get(model)
    trainer = small_trainer(config, run, GRAPH, group, np.array(bounds), features=features)
    before = trainer.embedding.weight.clone()
    batch = batch_of(trainer, STEP)
    value = trainer.train_step(batch)
    gradients = {
        "loss": value.reshape(1).numpy(),
        "share": np.array([len(batch.share)]),
        "rows": ((before - trainer.embedding.weight) / LEARNING_RATE).numpy(),
    }
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        gradients[f"dense {name}"] = parameter.grad.numpy()
    return gradients


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    for index, (model, loss, bounds) in enumerate(CASES):
        np.savez(folder / f"{index}-{rank}.npz", **one_step(model, loss, BOUNDS[bounds], folder, group))
    group.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case's gradients at two workers."""
    folder = tmp_path_factory.mktemp("gradients")
    run_two_workers(worker, folder)
    return folder


@pytest.mark.parametrize("index", range(len(CASES)), ids=[", ".join(case) for case in CASES])
def test_two_workers_have_the_gradients_of_one(folder: Path, index: int) -> None:
    model, loss, bounds = CASES[index]
    group = WorkerGroup.join(0, 1)
    try:
        one = one_step(model, loss, [0, GRAPH.n_nodes], folder, group)
    finally:
        group.leave()
    first, second = (np.load(folder / f"{index}-{rank}.npz") for rank in range(2))
    shares = [int(first["share"][0]), int(second["share"][0])]
    assert sum(shares) == one["share"][0] == 32
    assert (shares[1] == 0) == bounds.startswith("one without")
    assert first["loss"][0] + second["loss"][0] == pytest.approx(one["loss"][0], rel=1e-12)
    rows = np.concatenate([first["rows"], second["rows"]])
    assert np.abs(one["rows"]).max() > 1e-4
    np.testing.assert_allclose(rows, one["rows"], rtol=1e-9, atol=1e-12)
    dense = [name for name in one if name.startswith("dense ")]
    assert bool(dense) == (model != "lightgcn")
    for name in dense:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], one[name], rtol=1e-9, atol=1e-12)
    assert not dense or max(np.abs(one[name]).max() for name in dense) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", ["graphsage and towers", "lightgcn and features"])
def test_one_worker_has_the_gradients_of_plain_autograd(tmp_path: Path, model: str, loss: str) -> None:
    """No wrapper, no exchange: a factor common to all numbers of workers would show here."""
    features = FEATURES.get(model)
    group = WorkerGroup.join(0, 1)
    try:
        got = one_step(model, loss, [0, GRAPH.n_nodes], tmp_path, group)
        config = small_config(*MODELS[model], *LOSSES[loss])
        trainer = small_trainer(config, tmp_path, GRAPH, group, features=features)
        batch = batch_of(trainer, STEP)
        keys = node_keys(batch.node_type, batch.stable_id)
        blocks = block_tensors(batch.blocks, keys, group.device, trainer.dtype)
        table = trainer.embedding.weight.clone().requires_grad_()
        key = dropout_key(trainer.config.run.seed, STEP)
        rows = table
        if features is not None:  # all nodes' at once: node ids are the users, then the items
            maps = dict(trainer.model.named_parameters())
            added = [
                torch.from_numpy(f).double() @ maps[f"projection.linear.{r}.weight"].T for r, f in features.items()
            ]
            rows = table + torch.cat(added)
        user, item = trainer.model.train()(blocks, rows[torch.from_numpy(batch.nodes)], batch.n_seed_users, key)
        loss_of(trainer.config.loss, batch, user, item, GRAPH, group).backward()
    finally:
        group.leave()
    assert table.grad is not None
    np.testing.assert_allclose(got["rows"], table.grad.numpy(), rtol=1e-9, atol=1e-12)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(got[f"dense {name}"], parameter.grad.numpy(), rtol=1e-9, atol=1e-12)
