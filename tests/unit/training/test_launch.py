from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distgnn.config_reading import load_config
from distgnn.training import launch
from distgnn.training.launch import local_workers, on_local_workers, worker_threads
from distgnn.types import UserError, WorkerError


@pytest.mark.parametrize(
    ("workers", "threads", "chosen", "each"),
    [
        ("1,8", 0, 4, 1),
        ("1,2", 0, 2, 2),
        ("1,8", 2, 2, 2),
        ("1,8", 3, 1, 3),
        ("3,8", 2, 3, 2),
        ("6,8", 0, 6, 1),
        ("7", 0, 7, 1),
        ("2", 0, 2, 2),
    ],
)
def test_workers_that_four_cores_allow(
    monkeypatch: pytest.MonkeyPatch, workers: str, threads: int, chosen: int, each: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    config = load_config(None, [f"cluster.workers={workers}", f"cluster.threads_per_worker={threads}"])
    assert (local_workers(config), worker_threads(config)) == (chosen, each)


def test_gpus_bound_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = load_config(None, ["cluster.workers=1,4", "cluster.use_gpu=true"])
    assert (local_workers(config), worker_threads(config)) == (2, 4)


class Attempts:
    """Stands for `run_attempt`: fails as often as it is told to.

    Attributes:
        seen: workers and `run.resume` of each attempt.
    """

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.seen: list[tuple[int, bool]] = []

    def __call__(self, task: dict[str, Any], workers: int, threads: int, timeout_seconds: float) -> dict[str, Any]:
        self.seen.append((workers, task["config"]["run"]["resume"]))
        if self.errors:
            raise self.errors.pop(0)
        return {"attempts": len(self.seen)}


def launched(attempts: Attempts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, Any]:
    monkeypatch.setattr(launch, "run_attempt", attempts)
    config = load_config(None, ["cluster.max_failures=2", *options])
    unchanged = SimpleNamespace(change=str, refuse_change=lambda: None)
    dataset: Any = SimpleNamespace(path=tmp_path / "data", in_use=unchanged)
    return on_local_workers("a:job", config, str(tmp_path / "run"), dataset)


def test_attempts_go_on_and_the_cores_are_counted_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4 - len(attempts.seen))))
    attempts = Attempts(WorkerError("worker 3 died"), WorkerError("worker 0 died"))
    options = ("cluster.workers=2,8", "cluster.threads_per_worker=1")
    assert launched(attempts, monkeypatch, tmp_path, *options) == {"attempts": 3}
    assert attempts.seen == [(4, False), (3, True), (2, True)]
    said = [line for line in capsys.readouterr().err.splitlines() if "restart" in line]
    assert said == [
        "worker 3 died; starting again (restart 1 of 2)",
        "worker 0 died; starting again (restart 2 of 2)",
    ]


def test_attempts_are_used_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts = Attempts(*(WorkerError(f"worker {rank} died") for rank in range(3)))
    with pytest.raises(WorkerError, match=r"^worker 2 died; 2 restarts did not help \(cluster.max_failures\)$"):
        launched(attempts, monkeypatch, tmp_path, "cluster.workers=2")
    assert len(attempts.seen) == 3


def test_a_mistake_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts = Attempts(UserError("set it back"))
    with pytest.raises(UserError, match="set it back"):
        launched(attempts, monkeypatch, tmp_path, "cluster.workers=2")
    assert len(attempts.seen) == 1
