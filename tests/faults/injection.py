"""Faults of worker processes, injected from outside: a worker is stopped, and looked at where it stands.

If it stands where it was wanted, it is killed, or left stopped; else it goes on, and another try is made.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distgnn import beat
from distgnn.beat import COMMUNICATION, START, TRAINER, Place
from distgnn.timeline import BACKWARD, CHECKPOINT, EVALUATION, EXCHANGE, EXPORT, FETCH, FORWARD, SAMPLING, UPDATE
from tests.faults.harness import MarkedRun

Wanted = Callable[[list[Place]], bool]
_LOOK_SECONDS = 50e-6
_LIMIT_SECONDS = 120.0  # until it stands where it is wanted


def _computes(stage: str) -> Wanted:
    return lambda places: places[TRAINER].stage == stage and not places[TRAINER].waits


STAGES: dict[str, Wanted] = {
    "start": lambda places: places[TRAINER].stage == START,
    "sampling": lambda places: any(p.stage == SAMPLING for p in places[COMMUNICATION + 1 :]),
    "fetch": _computes(FETCH),
    "exchange of rows": lambda places: places[TRAINER].stage == FETCH and places[TRAINER].waits,
    "forward": _computes(FORWARD),
    "backward": _computes(BACKWARD),
    "update": _computes(UPDATE),
    "evaluation": _computes(EVALUATION),
    "checkpoint": _computes(CHECKPOINT),
    "publishing": _computes(EXPORT),
    "communication thread": lambda places: places[COMMUNICATION].stage == EXCHANGE and places[COMMUNICATION].waits,
}


@dataclass
class Worker:
    """A worker process of a run's current attempt.

    Attributes:
        pid: of the process. record: file of its `beat`.
    """

    pid: int
    record: Path

    @classmethod
    def find(cls, run: MarkedRun, rank: int) -> Worker:
        """That of a rank, once it has begun its record."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < deadline:
            for record in run.temporary.glob(f".distgnn-workers.partial-*/beat-{rank}"):
                words = [b"distgnn.training.worker", os.fsencode(record.parent), str(rank).encode()]
                for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
                    if _command(pid)[-3:] == words and _places(record)[TRAINER].changes:
                        return cls(pid, record)
            assert run.process.poll() is None, f"it ended before worker {rank} was found:\n{run.output}"
            time.sleep(0.02)
        raise AssertionError(f"no worker {rank}:\n{run.output}")

    def stop_in(self, wanted: Wanted, run: MarkedRun, after: int = 0) -> Place:
        """Stop it where it is wanted, in a step later than `after` (counted over fit and full); where it stands."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < deadline:
            if not _reached(_places(self.record), after) or not wanted(_places(self.record)):
                assert run.process.poll() is None, f"it ended before it stood there:\n{run.output}"
                time.sleep(_LOOK_SECONDS)
                continue
            os.kill(self.pid, signal.SIGSTOP)
            while _state(self.pid) not in "TtZ":
                time.sleep(_LOOK_SECONDS)
            places = _places(self.record)
            if wanted(places):
                return beat.place_of(places)
            os.kill(self.pid, signal.SIGCONT)
        raise AssertionError(f"it never stood there:\n{run.output}")

    def wait_until_killed(self, run: MarkedRun) -> None:
        """Until the supervisor has ended it."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while _state(self.pid) not in "ZX":
            assert time.monotonic() < deadline, f"nobody ends a stopped worker:\n{run.output}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        while _state(self.pid) not in "ZX":
            time.sleep(0.001)


def anywhere(places: list[Place]) -> bool:
    """Any stage will do."""
    return True


def _reached(places: list[Place], after: int) -> bool:
    trainer = places[TRAINER]
    return trainer.stage == START or trainer.phase == "full" or trainer.step >= after


def _places(record: Path) -> list[Place]:
    try:
        return beat.read(record)
    except FileNotFoundError:
        return [Place(0, beat.START, "", 0, 0, 0, failed=False)] * 16


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
