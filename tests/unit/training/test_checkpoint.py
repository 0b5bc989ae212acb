"""Checkpoints give back rows, moments and dense state, and are refused when they are not what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distgnn import storage
from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.checkpoint import checkpoint_folders, choose_checkpoint, list_checkpoints, remove_checkpoint
from distgnn.training.recorder import Recorder
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server
from tests.small_training import batch_of, small_config, small_features, small_graph, small_trainer

__all__ = ["s3_bucket", "s3_server"]

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


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            (3, 5),
            (3, 4),
            "3 features of users and 5 features of items, now 3 features of users and 4 features of items",
        ),
        ((0, 5), (0, 0), "5 features of items, now no features"),
        ((0, 0), (2, 0), "no features, now 2 features of users"),
    ],
)
def test_other_features_are_refused(
    tmp_path: Path, group: WorkerGroup, before: tuple[int, int], after: tuple[int, int], words: str
) -> None:
    def made(widths: tuple[int, int], *overrides: str) -> PhaseTrainer:
        config = small_config(*MODEL, *overrides)
        return small_trainer(config, tmp_path, GRAPH, group, features=small_features(GRAPH, *widths))

    trainer = made(before)
    trainer.save()
    (info,) = list_checkpoints(str(tmp_path))
    made(before).resume(info)
    with pytest.raises(UserError, match=f"was trained with {words}: set model.features back"):
        made(after).resume(info)
    if any(before):
        with pytest.raises(UserError, match="now no features: set model.features back"):
            made(before, "model.features=false").resume(info)


@pytest.mark.parametrize("other", ["sgd", "adagrad"])
def test_another_optimizers_state_is_refused(tmp_path: Path, group: WorkerGroup, other: str) -> None:
    saved(tmp_path, group, f"optim.name={other}")
    (info,) = list_checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=f"trained with optim.name = {other}, now adam"):
        fresh(tmp_path, group).resume(info)


def test_rows_that_no_shard_holds_are_noticed(tmp_path: Path, group: WorkerGroup) -> None:
    saved(tmp_path, group)
    (info,) = list_checkpoints(str(tmp_path))
    files = {name: digest for name, digest in info.manifest["files"].items() if not name.startswith("shard-")}
    with pytest.raises(UserError, match=f"{GRAPH.n_nodes} nodes have no row"):
        fresh(tmp_path, group).resume(replace(info, manifest={**info.manifest, "files": files}))


def flip(content: bytes) -> bytes:
    """One bit, in the middle."""
    return bytes([*content[: len(content) // 2], content[len(content) // 2] ^ 1, *content[len(content) // 2 + 1 :]])


def other_step(content: bytes) -> bytes:
    return content.replace(b'"step": 10', b'"step": 11')


DAMAGES = {
    "missing": None,
    "truncated": lambda content: content[: len(content) // 2],
    "altered": flip,
    "empty": lambda content: b"",
}


def saved_twice(root: str, run: Path, group: WorkerGroup) -> PhaseTrainer:
    """Checkpoints of steps 5 and 10 under a URI."""
    trainer = fresh(run, group)
    trainer.run = root
    for _ in range(2):
        advance(trainer, 5)
        trainer.save()
    return trainer


def damage(uri: str, change: Callable[[bytes], bytes] | None) -> None:
    if change is None:
        storage.remove_file(uri)
    else:
        before = storage.read_bytes(uri)
        storage.write_bytes(uri, change(before))
        assert storage.read_bytes(uri) != before


@pytest.mark.parametrize("file", ["shard-0000.safetensors", "dense.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_chosen(tmp_path: Path, group: WorkerGroup, file: str, how: str) -> None:
    saved_twice(str(tmp_path), tmp_path, group)
    first, second = list_checkpoints(str(tmp_path))
    assert choose_checkpoint(str(tmp_path), group) == (second, [])
    damage(f"{second.uri}/{file}", DAMAGES[how])
    chosen, faults = choose_checkpoint(str(tmp_path), group)
    assert chosen == first
    (fault,) = faults
    assert fault.startswith(f"{second.uri}/{file}: {'missing' if how == 'missing' else 'altered or truncated'}")
    damage(f"{first.uri}/{file}", DAMAGES[how])
    with pytest.raises(UserError, match=r"none of its checkpoints is intact \(.*00010.*00005.*\): restore"):
        choose_checkpoint(str(tmp_path), group)


def test_a_manifest_that_was_made_to_say_something_else_is_not_believed(tmp_path: Path, group: WorkerGroup) -> None:
    saved_twice(str(tmp_path), tmp_path, group)
    first, second = list_checkpoints(str(tmp_path))
    damage(f"{second.uri}/manifest.json", other_step)
    assert choose_checkpoint(str(tmp_path), group)[0] == first


def test_a_store_that_cannot_be_read_is_no_damage(
    tmp_path: Path, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_twice(str(tmp_path), tmp_path, group)

    def refuse(uri: str) -> str:
        raise UserError(f"{uri}: cannot be read: no route to host")

    monkeypatch.setattr(storage, "sha256_of", refuse)
    with pytest.raises(UserError, match="no route to host"):
        choose_checkpoint(str(tmp_path), group)


def test_what_a_stop_left_unfinished_is_passed_over_and_is_no_reason_to_refuse(
    tmp_path: Path, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(uri: str, content: object) -> None:
        raise KeyboardInterrupt

    trainer = fresh(tmp_path, group)
    advance(trainer, 5)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.save()
    chosen, faults = choose_checkpoint(str(tmp_path), group)
    assert chosen is None
    (fault,) = faults
    assert "step-00000005-fit: was being written when the run stopped: no checkpoint was finished before it" in fault
    trainer.save()
    chosen, faults = choose_checkpoint(str(tmp_path), group)
    assert (chosen.step if chosen else None, faults) == (5, [])
    assert {f.name for f in (tmp_path / "checkpoints" / "step-00000005-fit").iterdir()} == {
        "manifest.json",
        "dense.safetensors",
        "shard-0000.safetensors",
    }


def test_on_an_object_store(tmp_path: Path, s3_bucket: str, group: WorkerGroup) -> None:
    run = f"{s3_bucket}/runs/first"
    assert choose_checkpoint(run, group) == (None, [])
    trainer = saved_twice(run, tmp_path, group)
    first, second = list_checkpoints(run)
    assert (first.step, second.step) == (5, 10)
    other = fresh(tmp_path, group)
    other.run = run
    other.resume(second)
    for got, expected in zip(state(other), state(trainer), strict=True):
        assert torch.equal(got, expected)
    damage(f"{second.uri}/shard-0000.safetensors", flip)
    chosen, faults = choose_checkpoint(run, group)
    assert chosen == first
    assert len(faults) == 1
    other.resume(first)
    advance(other, 3)
    other.save()
    assert [c.step for c in checkpoint_folders(run)] == [5, 8]  # the damaged one lay beyond
    advance(other, 1)
    other.save()
    assert [c.step for c in list_checkpoints(run)] == [8, 9]


def test_the_best_is_gone_back_to_and_its_loss_is_told(
    tmp_path: Path, group: WorkerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fresh(tmp_path, group)
    trainer.recorder = Recorder(str(tmp_path), tensorboard=False, active=True)
    per_epoch = trainer.order.steps_per_epoch
    trainer.schedule.best_epoch = 1
    for _ in range(2):
        advance(trainer, per_epoch)
        trainer.save()
        if trainer.step == per_epoch:
            best = trainer.embedding.weight.clone()
    last = trainer.embedding.weight.clone()
    trainer.restore_best()
    assert torch.equal(trainer.embedding.weight, best)
    assert trainer.step == per_epoch
    first, second = list_checkpoints(str(tmp_path))
    trainer.resume(second)
    trainer.schedule.best_epoch = 1
    damage(f"{first.uri}/dense.safetensors", flip)
    trainer.restore_best()
    assert torch.equal(trainer.embedding.weight, last)
    assert trainer.step == 2 * per_epoch
    said = capsys.readouterr().err
    assert f"the best step, {per_epoch}, cannot be had ({first.uri}/dense.safetensors: altered" in said


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
