"""A run that is killed at random steps and goes on with other numbers of workers is the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

OPTIONS = {
    "partition.parts": "8",
    "partition.method": "random",
    "train.batch_size": "64",
    "train.log_every": "1",
    "train.epochs": "9",
    "train.patience": "99",
    "train.checkpoint_every": "7",
    "sampler.fanout": "4,3",
    "model.dim": "8",
    "model.encoder": "graphsage",
    "model.tower": "mlp",
    "model.dropout": "0.2",
    "optim.lr": "0.01",
    "run.dump_blocks": "true",
    "run.tensorboard": "false",
    "cluster.threads_per_worker": "1",
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    key = np.unique(np.random.default_rng(3).integers(0, 90 * 60, 1800))
    pq.write_table(pa.table({"user": key // 60, "item": key % 60}), path)
    return path


def command(log: Path, run: Path, workers: int, dtype: str) -> list[str]:
    options = {**OPTIONS, "run.dtype": dtype, "run.resume": str(run.exists()).lower()}
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    start = [sys.executable, "-m", "distgnn", "train", "--input", str(log), "--out", str(run)]
    return [*start, "--workers", str(workers), *words]


def n_records(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_after(records: int, words: list[str], run: Path) -> None:
    """Start a run and kill all of its processes once it has written so many records."""
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while n_records(run) < records:
        assert process.poll() is None, "ended before it was to be killed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(run: Path) -> dict[tuple[str, int], float]:
    """By phase and step; every step is there once."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [((r["phase"], r["step"]), r["loss"]) for r in records if "loss" in r]
    assert len(found) == len(dict(found))
    return dict(found)


def blocks(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in (run / "blocks").rglob("*.npz")}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "loss", "metric"), [("float64", 1e-9, 1e-9), ("float32", 1e-5, 1e-3)])
def test_killed_at_random_steps_on_one_two_three_and_one_worker(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, loss: float, metric: float
) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    whole, run = tmp_path / "whole", tmp_path / "run"
    subprocess.run(command(log, whole, 1, dtype), check=True, capture_output=True)
    expected = losses(whole)
    assert len(expected) > 300
    stops = np.array([20, 110, 200]) + np.random.default_rng().integers(0, 70, 3)
    print(f"killed after {stops} records")  # shown where the test fails
    for stop, workers in zip(stops, (1, 2, 3), strict=True):
        kill_after(int(stop), command(log, run, workers, dtype), run)
    subprocess.run(command(log, run, 1, dtype), check=True, capture_output=True)
    assert losses(run) == pytest.approx(expected, rel=loss)
    assert blocks(run) == blocks(whole)
    got, undisturbed = (json.loads((r / "report.json").read_text()) for r in (run, whole))
    assert got["metrics"] == pytest.approx(undisturbed["metrics"], abs=metric)
    assert got["epochs"]["full"] == undisturbed["epochs"]["full"]
