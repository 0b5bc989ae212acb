"""A real Ray cluster and real `ray job submit`: the five jobs, failures, waiting, stopping, a killed worker."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from distgnn.config_reading import load_config
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.checkpoint import list_checkpoints
from distgnn.training.launch import run_training
from tests.ray_cluster import LocalCluster, ray_cluster

__all__ = ["ray_cluster"]

SMALL = [
    "train.batch_size=64",
    "train.log_every=1",
    "sampler.fanout=4,3",
    "model.dim=8",
    "run.tensorboard=false",
    "optim.lr=0.01",
    "cluster.threads_per_worker=1",
]
ENDLESS = ["train.max_steps=10000000", "train.epochs=10000000", "train.eval_every=0"]


def options(*overrides: str) -> list[str]:
    return [word for override in (*SMALL, *overrides) for word in ("--set", override)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    key = np.unique(np.random.default_rng(0).integers(0, 120 * 60, 2500))
    table = pa.table({"user": [f"u{k // 60:03}" for k in key], "item": [f"i{k % 60:02}" for k in key]})
    pa_csv.write_csv(table, path)
    return path


@pytest.fixture(scope="module")
def dataset(ray_cluster: LocalCluster, log: Path) -> Path:
    """Prepared by the job."""
    out = log.parent / "dataset"
    submitted = ray_cluster.submit("prepare", "--input", str(log), "--parts", "4", "--out", str(out))
    assert submitted.returncode == 0, submitted.stdout
    return out


@pytest.fixture(scope="module")
def teacher(ray_cluster: LocalCluster, dataset: Path) -> Path:
    """Trained by the job on two workers."""
    run = dataset.parent / "teacher"
    chosen = options("partition.parts=4", "run.dump_blocks=true", "train.epochs=2")
    submitted = ray_cluster.submit("train", "--data", str(dataset), "--workers", "2", "--out", str(run), *chosen)
    assert submitted.returncode == 0, submitted.stdout
    return run


def curve(run: Path, phase: str = "fit") -> dict[int, float]:
    """Loss by step; every step is there once."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(r["step"], r["loss"]) for r in records if r["phase"] == phase and "loss" in r]
    assert len(found) == len(dict(found))
    return dict(found)


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def n_records(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_a_submitted_prepare_is_the_dataset(dataset: Path) -> None:
    assert PreparedDataset.open(str(dataset)).partitionings() == ["metis-4"]


def test_a_submitted_run_draws_and_learns_what_plain_processes_do(teacher: Path, dataset: Path, tmp_path: Path) -> None:
    overrides = [f"data.path={dataset}", f"run.out={tmp_path / 'plain'}", "cluster.workers=2", "train.epochs=2"]
    report = run_training(load_config(None, [*SMALL, *overrides, "partition.parts=4", "run.dump_blocks=true"]))
    plain = sorted((tmp_path / "plain" / "blocks").rglob("*.npz"))
    assert len(plain) > 20
    for file in plain:
        assert (teacher / "blocks" / file.relative_to(tmp_path / "plain" / "blocks")).read_bytes() == file.read_bytes()
    for phase in ("fit", "full"):
        assert curve(teacher, phase) == pytest.approx(curve(tmp_path / "plain", phase), rel=1e-6)
    submitted = json.loads((teacher / "report.json").read_text())
    assert submitted["metrics"] == pytest.approx(report["metrics"], abs=1e-6)
    assert submitted["workers"] == 2
    assert {path.name for path in teacher.iterdir()} >= {"report.html", "checkpoints", "embeddings", "config.toml"}


def test_a_submitted_evaluation_repeats_the_figures(ray_cluster: LocalCluster, teacher: Path) -> None:
    submitted = ray_cluster.submit("evaluate", "--run", str(teacher), "--workers", "2", "--baselines", "toppop")
    assert submitted.returncode == 0, submitted.stdout
    again = json.loads((teacher / "evaluation-test" / "report.json").read_text())
    assert again["metrics"] == pytest.approx(json.loads((teacher / "report.json").read_text())["metrics"], abs=1e-6)
    assert "TopPop" in submitted.stdout


@pytest.fixture(scope="module")
def student(ray_cluster: LocalCluster, teacher: Path) -> Path:
    """Distilled by the job on two workers."""
    run = teacher.parent / "student"
    words = ["--run", str(teacher), "--workers", "2", "--out", str(run), "--set", "distill.dim=6"]
    submitted = ray_cluster.submit("distill", *words, "--set", "cluster.threads_per_worker=1")
    assert submitted.returncode == 0, submitted.stdout
    return run


def test_a_submitted_distillation_reports_all_that_it_compares(student: Path) -> None:
    rows = {row["model"]: row for row in json.loads((student / "report.json").read_text())["models"]}
    assert {"teacher", "teacher-int8", "pca-int8", "student", "student-int8"} <= set(rows)
    assert rows["student-int8"]["bytes"] == rows["pca-int8"]["bytes"] == (120 + 60) * (6 + 2)
    assert rows["teacher"]["bytes"] == (120 + 60) * 8 * 4


@pytest.mark.parametrize("run", ["teacher", "student"])
def test_submitted_recommendations_are_in_the_logs_own_keys(
    ray_cluster: LocalCluster, run: str, teacher: Path, student: Path, log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "top.csv"
    path = {"teacher": teacher, "student": student}[run]
    submitted = ray_cluster.submit("recommend", "--run", str(path), "--k", "5", "--out", str(out))
    assert submitted.returncode == 0, submitted.stdout
    table = pa_csv.read_csv(out)
    assert table.column_names == ["user", "rank", "item", "score"]
    assert set(table["user"].to_pylist()) == set(pa_csv.read_csv(log)["user"].to_pylist())
    assert set(table["item"].to_pylist()) <= set(pa_csv.read_csv(log)["item"].to_pylist())
    assert table["rank"].to_pylist()[:5] == [1, 2, 3, 4, 5]


def test_a_failing_job_says_why_in_one_line(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    failed = ray_cluster.submit("train", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "run"))
    assert failed.returncode != 0
    assert f"distgnn: {tmp_path / 'nothing'}: no prepared dataset there" in failed.stdout
    assert "Traceback" not in failed.stdout
    assert not (tmp_path / "run").exists()


def test_an_output_that_would_be_lost_with_the_job_is_refused(ray_cluster: LocalCluster, dataset: Path) -> None:
    refused = ray_cluster.submit("train", "--data", str(dataset), "--out", "runs/lost")
    assert refused.returncode != 0
    assert "run.out = 'runs/lost' is relative: under ray job submit" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_a_mistake_that_workers_meet_ends_the_job_without_restarts(
    ray_cluster: LocalCluster, dataset: Path, tmp_path: Path
) -> None:
    chosen = options("partition.parts=4", "model.encoder=torch_geometric.nn.NoSuchConv")
    words = ["--data", str(dataset), "--workers", "2", "--out", str(tmp_path / "run"), *chosen]
    failed = ray_cluster.submit("train", *words)
    assert failed.returncode != 0
    assert "distgnn: config: model.encoder = 'torch_geometric.nn.NoSuchConv' is not a bipartite PyG" in failed.stdout
    assert "Traceback" not in failed.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_job_waits_or_is_refused_and_stopping_a_job_stops_its_workers(
    ray_cluster: LocalCluster, dataset: Path, tmp_path: Path
) -> None:
    common = ["--data", str(dataset), "--workers", "2"]
    first = options("partition.parts=4", "train.checkpoint_every=20", *ENDLESS)
    ray_cluster.submit("train", *common, "--out", str(tmp_path / "first"), *first, wait=False, name="first")
    until(lambda: n_records(tmp_path / "first") > 30)
    workers = ray_cluster.train_workers()
    assert len(workers) == 2

    hasty = options("partition.parts=4", "train.max_steps=5", "cluster.wait_seconds=1")
    refused = ray_cluster.submit("train", *common, "--out", str(tmp_path / "hasty"), *hasty)
    assert refused.returncode != 0
    assert (
        "distgnn: the Ray cluster is busy with other jobs: this one needs 2 CPUs of which 0 are free" in refused.stdout
    )

    patient = options("partition.parts=4", "train.max_steps=5")
    ray_cluster.submit("train", *common, "--out", str(tmp_path / "patient"), *patient, wait=False, name="patient")
    until(lambda: "waiting for other jobs on the Ray cluster" in ray_cluster.logs("patient"))
    assert not (tmp_path / "patient" / "metrics.jsonl").exists()

    assert ray_cluster.run("ray", "job", "stop", "first").returncode == 0
    until(lambda: not any(worker.is_running() for worker in workers), 30)
    assert ray_cluster.status("first") == "STOPPED"
    until(lambda: ray_cluster.status("patient") == "SUCCEEDED")
    assert len(curve(tmp_path / "patient")) == 5

    before = curve(tmp_path / "first")
    checkpoint = list_checkpoints(str(tmp_path / "first"))[-1].step
    onward = options("partition.parts=4", *ENDLESS, f"train.max_steps={checkpoint + 10}")
    resumed = ray_cluster.submit("train", *common, "--out", str(tmp_path / "first"), "--resume", *onward)
    assert resumed.returncode == 0, resumed.stdout
    assert f"going on from fit step {checkpoint} on 2 workers" in resumed.stdout
    after = curve(tmp_path / "first")
    assert len(after) == checkpoint + 10
    assert {step: before[step] for step in range(1, checkpoint + 1)} == {s: after[s] for s in range(1, checkpoint + 1)}


@pytest.mark.slow
def test_a_killed_worker_is_made_good_from_the_last_checkpoint(
    ray_cluster: LocalCluster, dataset: Path, tmp_path: Path
) -> None:
    steps = ["partition.parts=4", "train.max_steps=400", "train.epochs=100", "train.eval_every=0"]
    steps.append("train.checkpoint_every=40")
    run_training(load_config(None, [*SMALL, *steps, f"data.path={dataset}", f"run.out={tmp_path / 'whole'}"]))
    common = ["--data", str(dataset), "--workers", "2", "--out", str(tmp_path / "run")]
    ray_cluster.submit("train", *common, *options(*steps), wait=False, name="killed")
    until(lambda: n_records(tmp_path / "run") > 60)
    victim = ray_cluster.train_workers()[-1]
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: ray_cluster.status("killed") in ("SUCCEEDED", "FAILED"), 150)
    output = ray_cluster.logs("killed")
    assert ray_cluster.status("killed") == "SUCCEEDED", output
    assert "going on from fit step" in output
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "whole"), rel=1e-4)
    assert len(curve(tmp_path / "run")) == 400


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:9"}, [], "no Ray cluster answers at 127.0.0.1:9"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, [], "is for ray job submit alone"),
        ({"RAY_AUTH_TOKEN": "not-the-token"}, [], "refuses us: the token that is set is not its own"),
        ({"RAY_AUTH_MODE": "disabled"}, [], "refuses us: it wants a token"),
        ({}, ["cluster.use_gpu=true"], "need 2 GPUs, the Ray cluster has 0"),
        ({}, ["cluster.workers=3", "partition.parts=4"], "need 3 CPUs, the Ray cluster has 2"),
    ],
    ids=["no cluster", "the job server's address", "wrong token", "no token", "no GPU", "too few CPUs"],
)
def test_a_cluster_that_cannot_be_used_is_told_at_once(
    ray_cluster: LocalCluster, dataset: Path, environment: dict[str, str], overrides: list[str], message: str
) -> None:
    started = time.monotonic()
    words = [word for o in ["cluster.ray=true", "cluster.workers=2", *overrides] for word in ("--set", o)]
    failed = ray_cluster.run("distgnn", "train", "--data", str(dataset), "--out", "/nowhere/run", *words, **environment)
    assert failed.returncode == 2
    assert failed.stdout.strip().splitlines()[-1].startswith("distgnn: ")
    assert message in failed.stdout
    assert "Traceback" not in failed.stdout
    assert time.monotonic() - started < 60
