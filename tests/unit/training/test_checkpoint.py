"""Checkpoints give back rows, moments and dense state, and are refused when they are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.checkpoint import list_checkpoints, remove_checkpoint
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import UserError
from tests.small_training import batch_of, small_config, small_graph, small_trainer

GRAPH = small_graph(2)
MODEL = ("optim.name=adam", "model.encoder=graphsage", "model.tower=mlp", "model.dropout=0.2")


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def fresh(run: Path, group: WorkerGroup, *overrides: str) -> PhaseTrainer:
    return small_trainer(small_config(*MODEL, *overrides), run, GRAPH, group)


def advance(trainer: PhaseTrainer, steps: int) -> list[float]:
    losses = []
    for step in range(trainer.step, trainer.step + steps):
        losses.append(trainer.train_step(batch_of(trainer, step)).item())
        trainer.step = step + 1
    return losses


def saved(run: Path, group: WorkerGroup, *overrides: str) -> PhaseTrainer:
    trainer = fresh(run, group, *overrides)
    advance(trainer, 5)
    trainer.save()
    return trainer


def state(trainer: PhaseTrainer) -> list[torch.Tensor]:
    dense = list(trainer.model.state_dict().values())
    assert trainer.optimizer is not None
    moments = [
        torch.as_tensor(entry[key])
        for _, entry in sorted(trainer.optimizer.state_dict()["state"].items())
        for key in sorted(entry)
        if entry[key] is not None
    ]
    return [trainer.embedding.weight, *trainer.embedding.moments, *dense, *moments]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_everything_comes_back_and_training_goes_on_as_if_never_stopped(
    tmp_path: Path, group: WorkerGroup, optimizer: str
) -> None:
    trainer = saved(tmp_path, group, f"optim.name={optimizer}")
    trainer.schedule.best_ndcg, trainer.schedule.stale = 0.25, 1
    trainer.save()
    other = fresh(tmp_path, group, f"optim.name={optimizer}")
    (info,) = list_checkpoints(str(tmp_path))
    other.resume(info)
    assert (info.step, info.phase, other.step) == (5, "fit", 5)
    assert other.schedule == trainer.schedule
    assert len(state(other)) == len(state(trainer)) > 10
    for got, expected in zip(state(other), state(trainer), strict=True):
        assert torch.equal(got, expected)
    assert advance(other, 4) == advance(trainer, 4)


def test_an_altered_truncated_or_missing_file_is_refused_by_name(tmp_path: Path, group: WorkerGroup) -> None:
    saved(tmp_path, group)
    (info,) = list_checkpoints(str(tmp_path))
    for name in ("shard-0000.safetensors", "dense.safetensors"):
        file = Path(info.uri) / name
        content = bytearray(file.read_bytes())
        file.write_bytes(content[:-8])
        with pytest.raises(UserError, match=f"{name}.*altered or truncated"):
            fresh(tmp_path, group).resume(info)
        flipped = bytearray(content)
        flipped[-3] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=f"{name}.*altered or truncated"):
            fresh(tmp_path, group).resume(info)
        file.unlink()
        with pytest.raises(UserError, match=name):
            fresh(tmp_path, group).resume(info)
        file.write_bytes(content)
    fresh(tmp_path, group).resume(info)


def test_a_checkpoint_of_another_dataset_is_refused(tmp_path: Path, group: WorkerGroup) -> None:
    saved(tmp_path, group)
    (info,) = list_checkpoints(str(tmp_path))
    trainer = fresh(tmp_path, group)
    trainer.dataset_facts = {"dataset": "other", "dataset_hash": "hash-of-another"}
    with pytest.raises(UserError, match=r"belongs to another dataset \(small\)"):
        trainer.resume(info)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=8", "rows of width 6, but model.dim = 8"),
        ("model.encoder=gcn", "the checkpoint's model is not the configured one"),
        ("model.tower=identity", "the checkpoint's model is not the configured one"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, group: WorkerGroup, override: str, message: str) -> None:
    saved(tmp_path, group)
    (info,) = list_checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=message):
        fresh(tmp_path, group, override).resume(info)


@pytest.mark.parametrize("other", ["sgd", "adagrad"])
def test_another_optimizers_state_is_refused(tmp_path: Path, group: WorkerGroup, other: str) -> None:
    saved(tmp_path, group, f"optim.name={other}")
    (info,) = list_checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=f"trained with optim.name = {other}, now adam"):
        fresh(tmp_path, group).resume(info)


def test_rows_that_no_shard_holds_are_noticed(tmp_path: Path, group: WorkerGroup) -> None:
    saved(tmp_path, group)
    manifest = next(tmp_path.rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    del content["files"]["shard-0000.safetensors"]
    manifest.write_text(json.dumps(content))
    (info,) = list_checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=f"{GRAPH.n_nodes} nodes have no row"):
        fresh(tmp_path, group).resume(info)


def test_the_newest_are_kept_and_the_best(tmp_path: Path, group: WorkerGroup) -> None:
    trainer = fresh(tmp_path, group, "train.keep_checkpoints=2")
    per_epoch = trainer.order.steps_per_epoch
    for epoch in range(1, 6):
        trainer.step = epoch * per_epoch
        if epoch == 2:
            trainer.schedule.best_epoch = 2
        trainer.save()
    assert [c.step // per_epoch for c in list_checkpoints(str(tmp_path))] == [2, 4, 5]


def test_one_without_a_manifest_does_not_count(tmp_path: Path, group: WorkerGroup) -> None:
    trainer = saved(tmp_path, group)
    advance(trainer, 1)
    trainer.save()
    first, second = list_checkpoints(str(tmp_path))
    (Path(second.uri) / "manifest.json").unlink()
    assert [c.step for c in list_checkpoints(str(tmp_path))] == [first.step]
    remove_checkpoint(first)
    assert not Path(first.uri).exists()
    assert list_checkpoints(str(tmp_path)) == []
