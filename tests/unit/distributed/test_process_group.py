"""Which communicators a worker gets, and which GPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distgnn.distributed.process_group import WorkerGroup
from distgnn.types import UserError


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A machine with two GPUs; what was asked of torch.distributed and CUDA."""
    calls: list[tuple[str, Any]] = []

    def new_group(**options: Any) -> str:
        calls.append(("new_group", options.get("backend")))
        return f"group {len(calls)}"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: calls.append((backend, options)))
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return calls


@pytest.mark.parametrize("size", [1, 2])
def test_a_worker_with_a_gpu_binds_nccl_to_it_and_has_gloo_beside(posted: list[tuple[str, Any]], size: int) -> None:
    group = WorkerGroup.join(0, size, use_gpu=True, init_method="tcp://127.0.0.1:1")
    gpu = torch.device("cuda", 0)
    assert group.device == gpu
    (_, first), (backend, options), (_, cpu), (_, gather) = posted
    assert (first, backend, options["device_id"], cpu, gather) == (gpu, "nccl", gpu, "gloo", None)
    assert len({str(group.cpu), str(group.gather), str(group.default)}) == 3
    assert group.communicator(gpu) is group.default
    assert group.communicator(torch.device("cpu")) is group.cpu


def test_without_a_gpu_one_gloo_group_does_for_both() -> None:
    group = WorkerGroup.join(0, 1)
    try:
        assert group.communicator(group.device) is group.cpu is group.default
        assert group.gather is not group.default
        assert dist.get_backend(group.gather) == "gloo"
    finally:
        group.leave()


def test_the_gpu_is_that_of_the_local_rank(posted: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert WorkerGroup.join(5, 6, use_gpu=True).device == torch.device("cuda", 1)


def test_a_launcher_may_choose_the_gpu(posted: list[tuple[str, Any]]) -> None:
    chosen = torch.device("cuda", 7)
    assert WorkerGroup.join(0, 2, use_gpu=True, device=chosen).device == chosen
    assert posted[0] == ("set_device", chosen)


def test_more_workers_than_gpus_are_refused(posted: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="worker 2 needs a GPU of its own, number 2 .* torch sees 2; lower"):
        WorkerGroup.join(2, 3, use_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        WorkerGroup.join(0, 1, use_gpu=True)
    assert posted == []


LEFT = """
from pathlib import Path
from distgnn.distributed.process_group import WorkerGroup

def threads():
    return sum("gloo" in task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir())

group = WorkerGroup.join(0, 1)
group.barrier()
joined = threads()
group.leave()
print(joined, threads(), group.rank)
"""


def test_no_thread_of_a_communicator_is_left_though_the_group_is_still_known() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    joined, left, _ = map(int, done.stdout.split())
    assert joined > 0
    assert left == 0
