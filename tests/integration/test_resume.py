"""A run that stopped goes on to the loss curve, the metrics and the records of one that never did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.config_reading import load_config
from distgnn.training import trainer
from distgnn.training.checkpoint import list_checkpoints
from distgnn.training.launch import run_training
from distgnn.training.step_settings import step_settings
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]

COMMON = [
    "partition.parts=2",
    "train.batch_size=64",
    "train.log_every=1",
    "sampler.fanout=4,3",
    "model.dim=8",
    "model.encoder=graphsage",
    "model.tower=mlp",
    "model.dropout=0.2",
    "run.tensorboard=false",
    "optim.lr=0.01",
]


def write_log(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    key = np.unique(rng.integers(0, 80 * 50, 1500))
    pq.write_table(pa.table({"user": key // 50, "item": key % 50}), path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log.parquet", 0)


@pytest.fixture(scope="module")
def dated_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("dated") / "log.parquet"
    columns = {"user": rng.integers(0, 80, 1500), "item": rng.integers(0, 50, 1500), "time": rng.integers(0, 99, 1500)}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))


def train(log: Path, run: Path, *overrides: str) -> dict[str, Any]:
    return run_training(load_config(None, [f"data.input={log}", f"run.out={run}", *COMMON, *overrides]))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path, phase: str = "fit") -> dict[int, float]:
    """Loss by step; every step is there once."""
    found = [(r["step"], r["loss"]) for r in records(run) if r["phase"] == phase and "loss" in r]
    assert len(found) == len(dict(found))
    return dict(found)


def forget_after(run: Path, step: int, phase: str = "fit") -> None:
    """Leave a run as a crash after the checkpoint of `step` leaves it: records beyond it, no later checkpoint."""
    for info in list_checkpoints(str(run)):
        if (info.phase == "full", info.step) > (phase == "full", step):
            shutil.rmtree(info.uri)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "fit", "step": 9')  # and a line that was being written


def test_a_shorter_run_goes_on(log: Path, tmp_path: Path) -> None:
    train(log, tmp_path / "whole", "train.max_steps=40")
    train(log, tmp_path / "cut", "train.max_steps=17")  # within an epoch
    assert len(curve(tmp_path / "cut")) == 17
    train(log, tmp_path / "cut", "train.max_steps=40", "run.resume=true")
    assert len(curve(tmp_path / "whole")) == 40
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_records_after_the_checkpoint_are_cut_and_trained_again(log: Path, tmp_path: Path) -> None:
    options = ("train.max_steps=20", "train.checkpoint_every=8", "train.keep_checkpoints=9")
    train(log, tmp_path / "run", *options)
    before = curve(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    forget_after(tmp_path / "cut", 8)
    assert [c.step for c in list_checkpoints(str(tmp_path / "cut"))] == [8]
    train(log, tmp_path / "cut", *options, "run.resume=true")
    assert curve(tmp_path / "cut") == before
    fresh = {r["step"]: r["seconds"] for r in records(tmp_path / "cut") if "loss" in r}
    old = {r["step"]: r["seconds"] for r in records(tmp_path / "run") if "loss" in r}
    assert all(fresh[step] == old[step] for step in range(1, 9))
    assert any(fresh[step] != old[step] for step in range(9, 21))  # really trained again, not kept


@pytest.mark.parametrize(("phase", "epoch"), [("fit", 1), ("fit", 2), ("full", 1)])
def test_both_phases_and_early_stopping_go_on(log: Path, tmp_path: Path, phase: str, epoch: int) -> None:
    options = ("train.epochs=4", "train.patience=2", "train.keep_checkpoints=99", "optim.lr=0.03")
    whole = train(log, tmp_path / "run", *options)
    fit, full = curve(tmp_path / "run"), curve(tmp_path / "run", "full")
    metrics = [r["ndcg@20"] for r in records(tmp_path / "run") if "ndcg@20" in r]
    (step,) = [
        c.step for c in list_checkpoints(str(tmp_path / "run")) if c.phase == phase and c.manifest["epoch"] == epoch
    ]
    forget_after(tmp_path / "run", step, phase)
    resumed = train(log, tmp_path / "run", *options, "run.resume=true")
    assert curve(tmp_path / "run") == fit
    assert curve(tmp_path / "run", "full") == full
    assert [r["ndcg@20"] for r in records(tmp_path / "run") if "ndcg@20" in r] == metrics
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["epochs"]["full"] == whole["epochs"]["full"]


def write_features(path: Path, seed: int) -> str:
    """Two numbers for each item of the log."""
    rng = np.random.default_rng(seed)
    pq.write_table(pa.table({"item": np.arange(50), "a": rng.normal(size=50), "b": rng.normal(size=50)}), path)
    return f"data.item_features={path}"


@pytest.mark.parametrize("features", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_on_another_number_of_workers(log: Path, tmp_path: Path, before: int, after: int, features: bool) -> None:
    more = [write_features(tmp_path / "features.parquet", 0)] if features else []
    train(log, tmp_path / "whole", "train.max_steps=30", *more)
    train(log, tmp_path / "cut", "train.max_steps=15", f"cluster.workers={before}", *more)
    (info,) = list_checkpoints(str(tmp_path / "cut"))[-1:]
    assert sum(name.startswith("shard-") for name in info.manifest["files"]) == before
    train(log, tmp_path / "cut", "train.max_steps=30", f"cluster.workers={after}", "run.resume=true", *more)
    got, expected = curve(tmp_path / "cut"), curve(tmp_path / "whole")
    assert len(expected) == 30
    assert got == pytest.approx(expected, rel=1e-6)


def test_other_features_are_other_data(log: Path, tmp_path: Path) -> None:
    run, features = tmp_path / "run", write_features(tmp_path / "features.parquet", 0)
    train(log, run, "train.max_steps=4", features)
    with pytest.raises(UserError, match="belong to another dataset"):
        train(log, run, "train.max_steps=8", "run.resume=true")
    with pytest.raises(UserError, match="belong to another dataset"):
        train(log, run, "train.max_steps=8", "run.resume=true", write_features(tmp_path / "others.parquet", 1))
    with pytest.raises(UserError, match="was trained with 2 features of items, now no features"):
        train(log, run, "train.max_steps=8", "run.resume=true", features, "model.features=false")
    train(log, run, "train.max_steps=8", "run.resume=true", features)
    assert len(curve(run)) == 8


def test_resume_without_a_checkpoint_starts_again(log: Path, tmp_path: Path) -> None:
    train(log, tmp_path / "run", "train.max_steps=6")
    before = curve(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(log, tmp_path / "run", "train.max_steps=6", "run.resume=true")
    assert curve(tmp_path / "run") == before


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("workers", [1, 2])
def test_from_the_checkpoint_before_a_damaged_one(
    log: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("train.max_steps=20", "train.checkpoint_every=8", "train.keep_checkpoints=9")
    train(log, tmp_path / "run", *options, f"cluster.workers={workers}")
    before = records(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    flip_bit(folder / "step-00000020-fit" / f"shard-{workers - 1:04d}.safetensors")
    (folder / "step-00000016-fit" / "dense.safetensors").unlink()
    train(log, tmp_path / "run", *options, f"cluster.workers={workers}", "run.resume=true")
    said = capfd.readouterr().err
    shard = folder / "step-00000020-fit" / f"shard-{workers - 1:04d}.safetensors"
    assert f"{shard}: altered or truncated" in said
    assert f"{folder}/step-00000016-fit/dense.safetensors: missing: step-00000008-fit is taken instead" in said
    assert "going on from fit step 8 on" in said
    after = records(tmp_path / "run")
    assert [r.get("loss") for r in after] == [r.get("loss") for r in before]
    assert [a["seconds"] == b["seconds"] for a, b in zip(after, before, strict=True)][:8] == [True] * 8
    assert any(a["seconds"] != b["seconds"] for a, b in zip(after[8:], before[8:], strict=True))
    assert [c.step for c in list_checkpoints(str(tmp_path / "run"))] == [8, 16, 20]


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_checkpoints_alone_are_refused_and_the_run_stays_as_it_was(
    log: Path, tmp_path: Path, workers: int
) -> None:
    run = tmp_path / "run"
    train(log, run, "train.max_steps=4")
    (shard,) = run.rglob("shard-0000.safetensors")
    flip_bit(shard)
    kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"none of its checkpoints is intact \(.*shard-0000\.safetensors: altered"):
        train(log, run, "train.max_steps=8", "run.resume=true", f"cluster.workers={workers}")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == kept


def test_a_run_on_an_object_store_goes_on_from_what_is_intact(log: Path, tmp_path: Path, s3_bucket: str) -> None:
    whole, run = tmp_path / "whole", f"{s3_bucket}/runs/cut"
    options = (f"data.input={log}", *COMMON, "train.checkpoint_every=5")
    run_training(load_config(None, [*options, f"run.out={whole}", "train.max_steps=14"]))
    run_training(load_config(None, [*options, f"run.out={run}", "train.max_steps=10", "cluster.workers=2"]))
    newest = list_checkpoints(run)[-1]
    storage.remove_file(f"{newest.uri}/shard-0001.safetensors")
    again = [f"run.out={run}", "train.max_steps=14", "run.resume=true"]
    run_training(load_config(None, [*options, *again]))
    lines = storage.read_bytes(f"{run}/metrics.jsonl").decode().splitlines()
    losses = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
    assert len(losses) == 14
    assert losses == pytest.approx(curve(whole), rel=1e-6)


def test_a_run_in_the_way_and_another_dataset_are_refused(log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(log, run, "train.max_steps=4")
    kept = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="in use"):
        train(log, run, "train.max_steps=4")
    other = write_log(tmp_path / "other.parquet", 1)
    with pytest.raises(UserError, match="belong to another dataset"):
        train(other, run, "train.max_steps=8", "run.resume=true")
    assert (run / "metrics.jsonl").read_bytes() == kept


@pytest.mark.parametrize("override", ["train.batch_size=32", "sampler.fanout=4,4", "sampler.time_respecting=true"])
def test_settings_that_make_other_steps_are_refused(dated_log: Path, tmp_path: Path, override: str) -> None:
    options = ("data.timestamp_column=time", "train.max_steps=4")
    train(dated_log, tmp_path / "run", *options)
    with pytest.raises(UserError, match=f"was trained with {override.split('=')[0]} = .*set .* back"):
        train(dated_log, tmp_path / "run", *options, "train.max_steps=8", "run.resume=true", override)


def test_a_time_respecting_run_goes_on(dated_log: Path, tmp_path: Path) -> None:
    options = ("data.timestamp_column=time", "data.split=global_time")
    train(dated_log, tmp_path / "whole", *options, "train.max_steps=20")
    train(dated_log, tmp_path / "cut", *options, "train.max_steps=9")
    info = list_checkpoints(str(tmp_path / "cut"))[-1]
    assert info.manifest["steps"]["sampler.time_respecting"] is True
    train(dated_log, tmp_path / "cut", *options, "train.max_steps=20", "run.resume=true")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_a_checkpoint_that_says_nothing_of_times_and_weights_was_trained_without(
    dated_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("data.timestamp_column=time", "train.max_steps=4")
    newer = ("sampler.time_respecting", "sampler.weighted")
    with monkeypatch.context() as earlier:
        earlier.setattr(
            trainer, "step_settings", lambda config: {k: v for k, v in step_settings(config).items() if k not in newer}
        )
        train(dated_log, tmp_path / "run", *options)
    with pytest.raises(UserError, match=r"was trained with sampler.time_respecting = False, now True"):
        train(dated_log, tmp_path / "run", *options, "run.resume=true", "sampler.time_respecting=true")
    train(dated_log, tmp_path / "run", *options, "train.max_steps=6", "run.resume=true")
