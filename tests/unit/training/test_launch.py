from __future__ import annotations

import os

import pytest
import torch

from distgnn.config import load_config
from distgnn.training.launch import local_workers, worker_threads


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
