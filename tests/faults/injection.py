"""Faults of worker processes, injected from outside: a worker is stopped, and looked at where it stands.

If it stands where it was wanted, it is killed, or left stopped; else it goes on for an instant, and is stopped again.
"""

from __future__ import annotations

import os
import random
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
_PAUSE_SECONDS = (20e-6, 500e-6)  # that it goes on for
_STEP_SECONDS = 0.05  # some steps of a small run
_LIMIT_SECONDS = 120.0  # until it stands where it is wanted


def _computes(stage: str) -> Wanted:
    return lambda places: places[TRAINER].stage == stage and not places[TRAINER].waits


ANYWHERE = "anywhere"
STAGES: dict[str, Wanted] = {
    "start": lambda places: places[TRAINER].stage == START,
    "sampling": lambda places: any(p.stage == SAMPLING for p in places[COMMUNICATION + 1 :]),
    "fetch": _computes(FETCH),
    "exchange of rows": lambda places: places[TRAINER].stage == FETCH and places[TRAINER].waits,
    "forward": _computes(FORWARD),
    "backward": _computes(BACKWARD),
    "update": _computes(UPDATE),
    "evaluation": lambda places: places[TRAINER].stage == EVALUATION,
    "checkpoint": lambda places: places[TRAINER].stage == CHECKPOINT,
    "publishing": lambda places: places[TRAINER].stage == EXPORT,
    "communication thread": lambda places: places[COMMUNICATION].stage == EXCHANGE and places[COMMUNICATION].waits,
    "an exchange": lambda places: places[TRAINER].waits,
    ANYWHERE: lambda places: True,
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

    def stop_in(self, stage: str, run: MarkedRun, after: int = 0) -> Place:
        """Stop it in one of STAGES, after so many steps of the fit; where it stands."""
        wanted = STAGES[stage]
        deadline = time.monotonic() + _LIMIT_SECONDS
        pause = random.Random(after)
        while time.monotonic() < deadline:
            assert run.process.poll() is None, f"it ended before it stood there:\n{run.output}"
            if _reached(_places(self.record), after):
                if stage == ANYWHERE:  # in the step, too: its record changes as it begins
                    time.sleep(pause.uniform(0, _STEP_SECONDS))
                os.kill(self.pid, signal.SIGSTOP)
                while set(self._states()) - set("TtZX"):
                    time.sleep(0)
                places = _places(self.record)
                if wanted(places):
                    return beat.place_of(places)
                os.kill(self.pid, signal.SIGCONT)
            time.sleep(pause.uniform(*_PAUSE_SECONDS))
        raise AssertionError(f"it never stood there:\n{run.output}")

    def _states(self) -> list[str]:
        """Of its threads."""
        try:
            return [_state(f"{self.pid}/task/{thread}") for thread in os.listdir(f"/proc/{self.pid}/task")]
        except OSError:
            return ["X"]

    def wait_until_ended(self, run: MarkedRun) -> None:
        """Until the supervisor has ended its attempt: the other workers are gone too."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while self.record.exists():
            assert time.monotonic() < deadline, f"nobody ends the others:\n{run.output}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        while _state(self.pid) not in "ZX":
            time.sleep(0.001)


def _reached(places: list[Place], after: int) -> bool:
    trainer = places[TRAINER]
    return trainer.phase == "full" or trainer.step >= after


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


def _state(task: int | str) -> str:
    try:
        return Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
