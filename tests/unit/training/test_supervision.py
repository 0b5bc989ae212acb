"""Who is to blame for the end of an attempt, from the workers' records alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distgnn import beat
from distgnn.beat import COMMUNICATION, TRAINER
from distgnn.timeline import ANSWER, BLOCKED, EXCHANGE, FETCH, FORWARD, PHASES, SAMPLING, TURN
from distgnn.training import supervision
from distgnn.training.supervision import _Watcher, beat_file, message_file, traceback_file
from distgnn.types import UserError, WorkerError

_WORDS = 8  # of a thread's place


class Process:
    """One that has ended with a code, or, with None, is alive."""

    pid = 0

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


def write(folder: Path, rank: int, places: dict[int, tuple[str, int, int, int, bool]]) -> None:
    """A worker's record: by slot the stage, the step, collectives entered and left, and whether one failed."""
    words = np.zeros(beat.SIZE // 8, np.int64)
    for slot, (stage, step, entered, left, failed) in places.items():
        base = slot * _WORDS
        words[base : base + 7] = [1, beat.STAGES.index(stage), PHASES.index("fit"), step, entered, left, failed]
    beat_file(folder, rank).write_bytes(words.tobytes())


def verdict(folder: Path, *codes: int | None, timeout: float = 0.6) -> str:
    with pytest.raises(WorkerError) as error:
        _Watcher([Process(code) for code in codes], folder, timeout).watch()  # type: ignore[arg-type, misc]
    return str(error.value)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(supervision, "_LOOK_SECONDS", 0.05)


def test_a_signal_goes_before_what_follows_from_it(tmp_path: Path) -> None:
    write(tmp_path, 0, {TRAINER: (FETCH, 8, 5, 4, True)})
    write(tmp_path, 1, {TRAINER: (FORWARD, 7, 4, 4, False)})
    assert verdict(tmp_path, 1, -9) == "worker 1 was killed by signal 9 (SIGKILL) in stage forward, fit step 8"


def test_an_error_of_its_own_goes_before_a_broken_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0, {TRAINER: (FETCH, 8, 5, 4, True)})
    write(tmp_path, 1, {TRAINER: (FORWARD, 7, 4, 4, False)})
    for rank in (0, 1):
        traceback_file(tmp_path, rank).write_text(f"traceback of worker {rank}\n")
    assert verdict(tmp_path, 1, 1) == "worker 1 ended with status 1 in stage forward, fit step 8"
    assert capsys.readouterr().err == "traceback of worker 1\n"


def test_an_error_of_its_own_is_no_stall_of_a_slower_one(tmp_path: Path) -> None:
    write(tmp_path, 0, {TRAINER: (FORWARD, 8, 5, 5, False)})
    write(tmp_path, 1, {TRAINER: (FORWARD, 7, 4, 4, False)})
    assert verdict(tmp_path, 1, None) == "worker 0 ended with status 1 in stage forward, fit step 9"


def test_a_timeout_of_the_others_names_who_is_behind(tmp_path: Path) -> None:
    write(tmp_path, 0, {TRAINER: (FETCH, 8, 5, 4, True)})
    write(tmp_path, 1, {TRAINER: (FORWARD, 7, 4, 4, False)})
    expected = "worker 1 has kept the others waiting for 0.6 s (cluster.timeout_seconds) in stage forward, fit step 8"
    assert verdict(tmp_path, 1, None) == expected


def test_silence_names_who_is_behind_in_the_exchange_for_sampling(tmp_path: Path) -> None:
    blocked, sampler = (BLOCKED, 7, 4, 4, False), 2
    write(tmp_path, 0, {TRAINER: blocked, COMMUNICATION: (EXCHANGE, 7, 3, 2, False), sampler: (ANSWER, 7, 0, 0, False)})
    write(tmp_path, 1, {TRAINER: blocked, COMMUNICATION: (TURN, 7, 2, 2, False), sampler: (SAMPLING, 7, 0, 0, False)})
    expected = "worker 1 has not moved for 0.6 s (cluster.timeout_seconds) in stage sampling, fit step 8"
    assert verdict(tmp_path, None, None) == expected


def test_a_stopped_one_is_named_even_where_it_waits_too(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path, rank, {TRAINER: (FETCH, 7, 5, 4, False)})
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stopped:
        os.kill(stopped.pid, signal.SIGSTOP)
        watcher = _Watcher([Process(None), stopped], tmp_path, 0.3)  # type: ignore[list-item]
        try:
            with pytest.raises(WorkerError, match=r"worker 1 has not moved for 0\.3 s .* in stage fetch, fit step 8"):
                watcher.watch()
        finally:
            stopped.kill()


def test_who_moves_has_not_stalled(tmp_path: Path) -> None:
    class Moving(Process):
        """Moves with every look, until it ends well."""

        looks = 0

        def poll(self) -> int | None:
            self.looks += 1
            write(tmp_path, 0, {TRAINER: (FORWARD, self.looks, 0, 0, False)})
            words = np.fromfile(beat_file(tmp_path, 0), np.int64)
            words[0] = self.looks
            beat_file(tmp_path, 0).write_bytes(words.tobytes())
            return 0 if time.monotonic() > ends else None

    ends = time.monotonic() + 1.0
    _Watcher([Moving(None)], tmp_path, 0.3).watch()  # type: ignore[list-item]


def test_a_mistake_is_one(tmp_path: Path) -> None:
    write(tmp_path, 0, {TRAINER: (FORWARD, 7, 4, 4, False)})
    message_file(tmp_path, 0).write_text("set it back")
    with pytest.raises(UserError, match="set it back"):
        _Watcher([Process(None), Process(-9)], tmp_path, 1.0).watch()  # type: ignore[list-item]
