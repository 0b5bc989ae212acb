"""One attempt of a group of worker processes on this machine: started, watched, ended, and in words what ended it.

A worker that dies ends the attempt, and so does one that shows no sign. Who is to blame is told from the workers'
records (see `distgnn.beat`): the others wait for it in a collective, or have failed there.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distgnn import beat, resources, storage
from distgnn.distributed.process_group import START_SECONDS
from distgnn.types import UserError, WorkerError

GRACE_SECONDS = 10.0  # that a worker which has met a mistake stays connected, and that an ended one may take
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.25  # how often the records are read
_SETTLE_SECONDS = 1.0  # between a broken connection and the end of the process that broke it
_PR_SET_PDEATHSIG = 1


def task_file(folder: Path) -> Path:
    """What the workers of an attempt are to do."""
    return folder / "task.json"


def report_file(folder: Path) -> Path:
    """Rank 0's report."""
    return folder / "report.json"


def message_file(folder: Path, rank: int) -> Path:
    """The mistake of the user's that a worker has met."""
    return folder / f"mistake-{rank}"


def traceback_file(folder: Path, rank: int) -> Path:
    """What a worker has failed with."""
    return folder / f"traceback-{rank}"


def beat_file(folder: Path, rank: int) -> Path:
    """A worker's record."""
    return folder / f"beat-{rank}"


def run_attempt(task: dict[str, Any], workers: int, threads: int, timeout_seconds: float) -> dict[str, Any]:
    """Run `python -m distgnn.training.worker` once a rank, to the end of all of them; rank 0's report.

    Args:
        task: for the workers. threads: of each. timeout_seconds: without a sign of a worker, before it has stalled.

    Raises:
        UserError: a mistake that a worker has met. WorkerError: one has died or stalled; the others are ended.
    """
    with storage.scratch_folder(str(Path(tempfile.gettempdir(), "distgnn-workers"))) as folder, _ended_by_sigterm():
        folder.chmod(0o700)
        task = {**task, "supervisor": os.getpid(), "workers": workers, "threads": threads}
        task_file(folder).write_text(json.dumps(task), encoding="utf-8")
        for rank in range(workers):
            beat_file(folder, rank).write_bytes(bytes(beat.SIZE))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            _start(processes, folder, workers, threads)
            _Watcher(processes, folder, timeout_seconds).watch()
        finally:
            _kill(processes)
        report: dict[str, Any] = json.loads(report_file(folder).read_text(encoding="utf-8"))
        return report


def end_with(supervisor: int) -> None:
    """This process is killed when its supervisor dies, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # died before
        os._exit(1)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does, so that it leaves nothing behind."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        print(f"distgnn: ended by signal {number}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _start(processes: list[subprocess.Popen[bytes]], folder: Path, workers: int, threads: int) -> None:
    """Add a process a rank to the list."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **loopback}
    command = [sys.executable, "-m", "distgnn.training.worker", str(folder)]
    # Workers inherit the mask: a terminal's Ctrl-C is for the supervisor, which ends them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for rank in range(workers):
            own = {**environment, "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen([*command, str(rank)], env=own, stdin=subprocess.DEVNULL))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them at once, stopped ones too."""
    for process in processes:
        process.kill()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


class _Watcher:
    """Waits for the workers' end, and finds who is to blame for an early one.

    Args:
        processes: by rank. folder: of the attempt. timeout: seconds without a sign.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], folder: Path, timeout: float) -> None:
        self._processes, self._folder, self._timeout = processes, folder, timeout
        self._ranks = range(len(processes))
        self._changes: dict[int, list[int]] = {}  # of a worker's threads
        self._silent = [0.0] * len(processes)  # seconds
        self._killed_for_memory = resources.killed_for_memory()

    def watch(self) -> None:
        """Return when all have ended well.

        Raises:
            UserError: one has left a message. WorkerError: one has died or stalled.
        """
        looked = time.monotonic()
        while any(process.poll() is None for process in self._processes):
            self._raise_failure()
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                # A supervisor that was stopped itself, as by Ctrl-Z, has missed signs: its own sleep does not count.
                self._look(min(now - looked, 2 * _LOOK_SECONDS))
                looked = now
            time.sleep(_POLL_SECONDS)
        self._raise_failure()

    def _raise_message(self) -> None:
        for rank in self._ranks:
            message = message_file(self._folder, rank)
            if message.exists():
                raise UserError(message.read_text(encoding="utf-8"))

    def _raise_failure(self) -> None:
        self._raise_message()
        if any(process.poll() not in (None, 0) for process in self._processes):
            self._raise_death()

    def _raise_death(self) -> None:
        """One or more have ended badly: killed ones first, then ones that did not fail in a collective."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            self._raise_message()  # of one whose mistake has failed the others
            dead = {rank: code for rank in self._ranks if (code := self._processes[rank].poll())}
            for rank, code in dead.items():
                if code < 0:
                    raise self._error(rank, self._killed_by(signal.Signals(-code)))
            first = [rank for rank in dead if not failed_by_others(self._places(rank))]
            if first:
                self._show_traceback(first[0])
                raise self._error(first[0], f"ended with status {dead[first[0]]}")
            time.sleep(_POLL_SECONDS)
        behind = self._behind()
        if behind is not None and behind not in dead:
            raise self._error(behind, f"has kept the others waiting for {self._timeout:g} s (cluster.timeout_seconds)")
        rank = min(dead)
        self._show_traceback(rank)
        raise self._error(rank, f"ended with status {dead[rank]}")

    def _look(self, seconds: float) -> None:
        """Read the records; `seconds` have gone by since the last time.

        Raises:
            WorkerError: a worker has shown no sign for too long.
        """
        for rank in self._ranks:
            if self._processes[rank].poll() is not None:
                continue
            places = self._places(rank)
            changes = [place.changes for place in places]
            if changes != self._changes.get(rank):
                self._changes[rank], self._silent[rank] = changes, 0.0
                continue
            self._silent[rank] += seconds
            limit = self._timeout
            if places[beat.TRAINER].stage == beat.START:
                limit = max(limit, START_SECONDS)
            if self._silent[rank] > limit:
                behind = self._behind()
                raise self._error(
                    rank if behind is None else behind, f"has not moved for {limit:g} s (cluster.timeout_seconds)"
                )

    def _killed_by(self, number: signal.Signals) -> str:
        """The signal, and what is known of its cause."""
        said = f"was killed by signal {number:d} ({number.name})"
        killed = resources.killed_for_memory() - self._killed_for_memory
        if number == signal.SIGKILL and killed:
            said += f", for want of memory as it seems ({killed} killed so on this machine meanwhile),"
        return said

    def _behind(self) -> int | None:
        """Who keeps the others waiting; None where that cannot be told."""
        for rank in self._ranks:
            if self._processes[rank].poll() is None and is_stopped(self._processes[rank].pid):
                return rank
        return beat.behind({rank: self._places(rank) for rank in self._ranks})

    def _places(self, rank: int) -> list[beat.Place]:
        return beat.read(beat_file(self._folder, rank))

    def _error(self, rank: int, how: str) -> WorkerError:
        return WorkerError(f"worker {rank} {how} {beat.words(self._places(rank))}")

    def _show_traceback(self, rank: int) -> None:
        with suppress(FileNotFoundError):
            sys.stderr.write(traceback_file(self._folder, rank).read_text(encoding="utf-8"))


def failed_by_others(places: list[beat.Place]) -> bool:
    """Whether a dead worker failed while it waited for others."""
    return places[beat.TRAINER].waits or any(place.failed for place in places)


def is_stopped(pid: int) -> bool:
    """Whether a process has got SIGSTOP, or is traced."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
