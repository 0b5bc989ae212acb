from __future__ import annotations

import collections
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distgnn import resources
from distgnn.config_reading import load_config
from distgnn.doctor import machine
from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding

Usage = collections.namedtuple("Usage", "total used free")


def examination(*overrides: str, **facts: Any) -> Examination:
    return Examination(load_config(None, list(overrides)), **facts)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys/fs/cgroup of our own; the process may run on 8 cores."""
    monkeypatch.setattr(resources, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup" / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cgroup" / "job").mkdir(parents=True)
    return tmp_path


def test_usable_cores(proc: Path) -> None:
    group = proc / "proc" / "self" / "cgroup"
    group.write_text("3:memory:/job\n")
    assert machine.usable_cores() == 8
    group.write_text("0::/job\n")
    (proc / "cgroup" / "job" / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 8
    (proc / "cgroup" / "cpu.max").write_text("250000 100000\n")  # of the group above
    assert machine.usable_cores() == 2.5
    group.write_text("3:cpu,cpuacct:/job\n")
    (proc / "cgroup" / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    (proc / "cgroup" / "cpu" / "job" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.usable_cores() == 8
    (proc / "cgroup" / "cpu" / "job" / "cpu.cfs_quota_us").write_text("400000\n")
    assert machine.usable_cores() == 4


def test_cores_against_workers_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4.0)
    threads = "cluster.threads_per_worker=2"
    assert only(machine.check_cores(examination("cluster.workers=2", threads))).status == OK
    many = only(machine.check_cores(examination("cluster.workers=3", threads)))
    assert (many.status, many.figure) == (WARN, "4 usable, 3 workers of 2 threads")
    assert "cluster.threads_per_worker" in many.advice
    assert only(machine.check_cores(examination("cluster.workers=30", "cluster.ray=true"))).status == OK
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(4)))
    ranged = only(machine.check_cores(examination("cluster.workers=1,8", threads)))
    assert (ranged.status, ranged.figure) == (OK, "4 usable, 2 workers of 2 threads")
    least = only(machine.check_cores(examination("cluster.workers=3,8", threads)))
    assert (least.status, least.figure) == (WARN, "4 usable, 3 workers of 2 threads")


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 4 << 30)
    assert only(machine.check_memory(examination())).figure.startswith("4.00 GiB free; ")
    small = only(machine.check_memory(examination(n_nodes=1000, n_rows=1000)))
    assert small.status == OK
    assert "preparing needs up to 0.41 GiB, training needs up to 2.00 GiB" in small.figure
    wide = only(machine.check_memory(examination("model.dim=1000000", n_nodes=1000, n_rows=1000)))
    assert wide.status == FAIL
    assert "model.dim" in wide.advice
    assert "distgnn prepare" not in wide.advice
    counts = {"user": 0, "item": 1_000_000}
    facts = {"n_nodes": 1_000_000, "n_by_role": counts, "feature_widths": {"item": 1000}}
    rich, off = (only(machine.check_memory(examination(f"model.features={x}", **facts))) for x in ("true", "false"))
    assert (rich.status, off.status) == (FAIL, OK)  # 4 GB of features
    workers = only(machine.check_memory(examination("cluster.workers=2", "partition.parts=2", n_nodes=1000)))
    assert workers.status == FAIL  # twice the 2 GiB for evaluation
    edges = {"n_nodes": 1000, "n_edges": 100_000_000}
    on, off = (only(machine.check_memory(examination(f"sampler.weighted={x}", **edges))) for x in ("true", "false"))
    assert (on.status, off.status) == (FAIL, OK)  # 4.5 GiB of tables
    long = only(machine.check_memory(examination(n_rows=1 << 30, timestamps=True)))
    assert long.status == FAIL
    assert "distgnn prepare" in long.advice
    ray = only(machine.check_memory(examination("model.dim=1000000", "cluster.ray=true", n_nodes=1000)))
    assert ray.status == OK  # the workers are elsewhere


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"free": 64 << 20}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(1 << 30, 0, sizes["free"]))
    assert only(machine.check_shared_memory(examination())).status == OK
    finding = only(machine.check_shared_memory(examination("cluster.ray=true")))
    assert finding.status == WARN
    assert "Ray's object store want" in finding.figure
    assert "--shm-size" in finding.advice
    sizes["free"] = 500 << 20
    assert only(machine.check_shared_memory(examination("cluster.ray=true"))).status == OK
    gpus = ["cluster.use_gpu=true", "cluster.workers=2", "partition.parts=2"]
    assert "NCCL" in only(machine.check_shared_memory(examination(*gpus))).figure
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "nowhere")
    assert machine.check_shared_memory(examination()) == []
    assert only(machine.check_shared_memory(examination("cluster.ray=true"))).status == WARN


def disks(examined: Examination) -> dict[str, Finding]:
    return {finding.what: finding for finding in machine.check_disks(examined)}


@pytest.mark.parametrize(("free", "status"), [(10 << 30, OK), (500 << 20, WARN), (1 << 20, FAIL)])
def test_disks_by_what_is_left(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free))
    found = disks(examination(f"run.out={tmp_path}/a/b"))
    assert {finding.status for finding in found.values()} == {status}
    assert list(found) == ["disk, cache", "disk, run.out", "disk, temporary"]
    assert f"free at {tmp_path}" in found["disk, run.out"].figure
    assert not (tmp_path / "a").exists()
    if status != OK:
        assert "DISTGNN_CACHE" in found["disk, cache"].advice


def test_checkpoints_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 10 << 30))
    # 768 bytes a node with its two moments; two are kept of each phase, and the best, and one is being written.
    found = disks(examination(f"run.out={tmp_path}/run", n_nodes=4_000_000))["disk, run.out"]
    assert (found.status, "checkpoints need up to 17.17 GiB" in found.figure) == (FAIL, True)
    assert "train.keep_checkpoints" in found.advice
    one = disks(examination(f"run.out={tmp_path}/run", "train.phase=fit", n_nodes=2_000_000))["disk, run.out"]
    assert (one.status, "checkpoints need up to 5.72 GiB" in one.figure) == (OK, True)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "file" / "cache"))
    found = disks(examination("run.out=s3://bucket/run"))
    assert list(found) == ["disk, cache", "disk, temporary"]
    assert found["disk, cache"].status == FAIL
    assert "DISTGNN_CACHE" in found["disk, cache"].advice


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices."""
    fake = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda index: ((7 + index) << 30, 8 << 30),
        get_device_name=lambda index: f"card {index}",
    )
    monkeypatch.setattr(torch, "cuda", fake)


def test_gpus(cuda: None) -> None:
    finding = only(machine.check_gpus(examination("cluster.use_gpu=true")))
    assert finding.status == OK
    assert finding.figure == "2: card 0, 7.00 GiB of 8.00 GiB free; card 1, 8.00 GiB of 8.00 GiB free"
    assert "leaves them idle" in only(machine.check_gpus(examination())).figure
    many = only(machine.check_gpus(examination("cluster.use_gpu=true", "cluster.workers=3")))
    assert (many.status, "at most 2" in many.advice) == (FAIL, True)
    small = only(machine.check_gpus(examination("cluster.use_gpu=true", "cluster.tables=device", n_nodes=20_000_000)))
    assert (small.status, "cluster.tables = auto" in small.advice) == (FAIL, True)
    assert only(machine.check_gpus(examination("cluster.use_gpu=true", n_nodes=20_000_000))).status == OK
    step = only(machine.check_gpus(examination("cluster.use_gpu=true", "train.batch_size=1000000", n_nodes=20_000_000)))
    assert (step.status, step.advice.startswith("lower model.dim")) == (FAIL, True)
    on_ray = examination("cluster.use_gpu=true", "cluster.workers=3", "cluster.ray=true")
    assert only(machine.check_gpus(on_ray)).status == OK


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(machine.check_gpus(examination())).status == OK
    missing = only(machine.check_gpus(examination("cluster.use_gpu=true")))
    assert missing.status == FAIL
    assert "cluster.use_gpu = false" in missing.advice
    assert only(machine.check_gpus(examination("cluster.use_gpu=true", "cluster.ray=true"))).status == WARN
