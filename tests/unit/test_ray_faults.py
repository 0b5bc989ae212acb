"""Who is to blame for the end of an attempt on Ray, from what the workers answer; records; alarms."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from distgnn import beat, ray_faults
from distgnn.beat import Place
from distgnn.ray_faults import FaultWatch, record_of, state_of
from distgnn.timeline import FETCH, FORWARD

TIMED_OUT = RuntimeError("Timed out waiting 8000ms for recv operation to complete")
Answers = tuple[dict[int, list[Place]], dict[int, Exception], list[int]]


def threads(stage: str, entered: int, left: int, failed: bool = False) -> list[Place]:
    """A worker whose trainer is there; its other threads have done nothing."""
    idle = Place(0, beat.START, "fit", 0, 0, 0, failed=False)
    return [Place(9, stage, "fit", 6, entered, left, failed), *[idle] * 15]


class Watch(FaultWatch):
    """Three workers that answer as they are told to."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(None, restarts=3, timeout=8, start=20, wait=60)
        self.killed: list[int] = []
        self._workers = [
            SimpleNamespace(metadata=SimpleNamespace(pid=70 + rank, node_ip=f"10.0.0.{rank}"), actor=rank)
            for rank in range(3)
        ]
        self._answers = answers

    def _ask(self) -> Answers:
        return self._answers

    def _look_at(self, rank: int, answered: Any) -> tuple[bool, list[Place]]:
        return True, threads(FORWARD, 4, 4)


def died(reason: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = reason
    return error


def test_a_death_goes_before_the_errors_of_its_peers() -> None:
    waits = threads(FETCH, 5, 4, failed=True)
    killed = died("its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End of file.")
    watch = Watch(({0: waits, 1: waits}, {2: killed}, []))
    said = "worker 2 (process 72 on 10.0.0.2) has died: its process was killed"
    assert watch._fault({0: TIMED_OUT}).startswith(said)
    failed = WorkerHealthCheckFailedError("A worker health check failed.", failure=killed)
    assert Watch(({0: waits, 1: waits}, {}, []))._fault({0: TIMED_OUT, 2: failed}).startswith(said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (died("The actor died because its node has died."), "cannot be reached: its node is lost"),
        (ActorUnavailableError("rpc error", b"\0" * 16), "cannot be reached: its node is lost"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "its node ran out of memory"),
        (died("something else"), "has died: something else"),
    ],
)
def test_what_ray_knows_of_a_death(error: Exception, said: str) -> None:
    assert said in Watch(({}, {1: error}, []))._fault({0: TIMED_OUT})


def test_a_stopped_worker_is_to_blame_and_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(ray_faults.ray, "kill", killed.append)
    watch = Watch(({0: threads(FETCH, 5, 4, failed=True)}, {}, [1]))
    assert watch._fault({0: TIMED_OUT}) == "worker 1 (process 71 on 10.0.0.1) is stopped in stage forward, fit step 7"
    assert killed == [1]


def test_an_error_of_a_workers_own_goes_before_those_of_collectives() -> None:
    watch = Watch(({0: threads(FETCH, 5, 4, failed=True), 1: threads(FORWARD, 4, 4)}, {}, []))
    said = watch._fault({0: TIMED_OUT, 1: MemoryError("Unable to allocate 3 GiB")})
    assert said == "worker 1 (process 71 on 10.0.0.1) failed in stage forward, fit step 7: Unable to allocate 3 GiB"


def test_one_that_keeps_the_others_waiting_is_to_blame() -> None:
    watch = Watch(({0: threads(FETCH, 5, 4, failed=True), 1: threads(FORWARD, 4, 4), 2: []}, {}, []))
    assert watch._fault({0: TIMED_OUT}) == (
        "worker 1 (process 71 on 10.0.0.1) has kept the others waiting for 8 s (cluster.timeout_seconds) in stage "
        "forward, fit step 7"
    )


KEEPS_A_RECORD = """
import time
from distgnn import beat, ray_faults
ray_faults.keep_record()
beat.at("forward", 6, "fit")
print("kept", flush=True)
time.sleep(60)
"""


def test_a_stopped_workers_record_is_read_by_another_process_and_goes_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPS_A_RECORD], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "kept\n"
        os.kill(worker.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not state_of(worker.pid)[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        stopped, places = state_of(worker.pid)
        assert (stopped, beat.words(places)) == (True, "in stage forward, fit step 7")
        worker.kill()
    assert record_of(worker.pid) is None


def test_what_a_killed_run_reserved_is_soon_free_from_its_first_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks for it before it calls anybody back."""
    monkeypatch.setattr(ray_faults.reservations, "AUTOSCALING_REQUESTS_EXPIRE_TIME_S", 180)
    watch = FaultWatch(None, restarts=3, timeout=8, start=20, wait=60)
    assert ray_faults.reservations.AUTOSCALING_REQUESTS_EXPIRE_TIME_S == 180
    copy.copy(watch)  # as one that is sent is made there
    assert ray_faults.reservations.AUTOSCALING_REQUESTS_EXPIRE_TIME_S == 45


class Letterbox:
    """A mailbox without Ray."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.leave_mistake = SimpleNamespace(remote=self.messages.append)
        self.leave_fault = SimpleNamespace(remote=self.messages.append)


def test_a_start_without_end_and_missing_nodes_end_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(ray_faults, "_LEAST_START_SECONDS", 0.0)
    monkeypatch.setattr(ray_faults, "_RAY_LOOKS_SECONDS", 0.0)
    monkeypatch.setattr(ray_faults.ray, "get", lambda ref, timeout: ref)
    monkeypatch.setattr(ray_faults.os, "_exit", lambda code: ended.set())
    box = Letterbox()
    watch = FaultWatch(box, restarts=3, timeout=0.1, start=0.1, wait=0.1)
    with watch.on_worker_group_start():
        assert ended.wait(10)
        assert box.messages == ["a worker has not started within 0 s"]
    ended.clear()
    with watch.on_worker_group_start():
        pass
    assert not ended.wait(0.5)  # they run
    watch.after_worker_group_shutdown(None)
    assert ended.wait(10)
    assert box.messages[1:3] == ["", ""]  # of a start that came about
    assert box.messages[3].startswith("there has been no room for the workers for 0 s (cluster.wait_seconds)")
