"""Workers of a host map the same memory, wait for each other, and notice who will not come."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from distgnn.distributed import shared_memory
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_memory import leave_meetings, share_arrays
from distgnn.types import WorkerError
from tests.two_workers import run_two_workers

ROUNDS = 200
SOME = [((8,), np.dtype(np.int64))]


def joined(rank: int, folder: Path, timeout: float = 60.0) -> WorkerGroup:
    return WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=timeout)


def take_turns(rank: int, folder: Path) -> None:
    """What one worker writes before a meeting the other reads after it, and never later values."""
    group = joined(rank, folder)
    shared = share_arrays([((3,), np.dtype(np.float32)), ((1 << 17,), np.dtype(np.int64))], group)
    assert shared is not None
    (small, values), meeting = shared
    assert small.shape == (3,) and values.shape == (1 << 17,) and not small.any() and not values.any()
    for turn in range(ROUNDS):
        values[rank::2] = turn
        meeting.meet()
        assert (values[1 - rank :: 2] == turn).all()
        meeting.meet()
    assert not any("distgnn" in name for name in os.listdir("/dev/shm"))
    group.leave()


def test_memory_is_shared_in_turns(tmp_path: Path) -> None:
    run_two_workers(take_turns, tmp_path)


def early(rank: int, folder: Path) -> None:
    """Who has arrived goes on, and waits for the other only when it says so."""
    group = joined(rank, folder)
    shared = share_arrays(SOME, group)
    assert shared is not None
    (values,), meeting = shared
    if rank == 0:
        values[0] = 1
        meeting.arrive()
        (folder / "arrived").touch()
        meeting.wait()
        assert values[1] == 2
    else:
        while not (folder / "arrived").exists():
            time.sleep(0.01)
        values[1] = 2
        meeting.meet()
        assert values[0] == 1
    group.leave()


def test_who_arrives_goes_on(tmp_path: Path) -> None:
    run_two_workers(early, tmp_path)


def one_does_not_come(rank: int, folder: Path, how: str) -> None:
    timeout = 1.5 if how == "is late" else 30.0
    group = joined(rank, folder, timeout)
    shared = share_arrays(SOME, group)
    assert shared is not None
    meeting = shared[1]
    meeting.meet()
    if rank == 1:
        if how == "leaves":
            leave_meetings()
        if how == "ends":
            os._exit(0)
        while not (folder / "noticed").exists():
            time.sleep(0.02)
        return
    started = time.monotonic()
    message = {"ends": "worker 1 has ended", "leaves": "has left the group", "is late": "has waited 2 s .*worker 1"}[
        how
    ]
    with pytest.raises(WorkerError, match=message):
        meeting.meet()
    assert (time.monotonic() - started > timeout) == (how == "is late")
    (folder / "noticed").touch()


@pytest.mark.parametrize("how", ["ends", "leaves", "is late"])
def test_who_does_not_come_is_named(tmp_path: Path, how: str) -> None:
    run_two_workers(one_does_not_come, tmp_path, how)


def cannot_map(rank: int, folder: Path) -> None:
    """On another host the path of rank 0's memory is missing or something else: nobody then shares any."""
    group = joined(rank, folder)
    if rank == 1:
        shared_memory._map = lambda *_: None  # type: ignore[assignment]
    assert share_arrays(SOME, group) is None
    group.leave()


def test_nobody_shares_what_one_cannot_map(tmp_path: Path) -> None:
    run_two_workers(cannot_map, tmp_path)


def test_other_files_are_not_mapped(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/memfd:distgnn-rows (deleted)")
    assert shared_memory._map(str(link), 4096, b"token") is None
    assert shared_memory._map("/proc/self/exe", 4096, b"token") is None
    descriptor = os.memfd_create("distgnn-rows")
    os.ftruncate(descriptor, 4096)
    os.pwrite(descriptor, b"token", 0)
    path = f"/proc/self/fd/{descriptor}"
    assert shared_memory._map(path, 4096, b"other") is None
    assert shared_memory._map(path, 8192, b"token") is None
    assert shared_memory._map(path, 4096, b"token") is not None
    os.close(descriptor)
