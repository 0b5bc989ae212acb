"""What every test of a fault needs: a run that cannot hang the tests, what it left behind, its curve, and a table row.

A command runs in a session and a temporary folder of its own, with a mark in its environment by which all that it has
started is found again, wherever it went.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from distgnn import storage
from distgnn.report.table import format_table
from distgnn.training.checkpoint import checkpoint_folders, list_checkpoints

_MARK = "DISTGNN_TEST_MARK"
_POLL_SECONDS = 0.02
COLUMNS = ("fault", "stage", "step", "seconds", "what happened")


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    Attributes:
        fault: what was done, to whom. stage: where it stood then. step: of which it was (None: of none).
        happened: how the run ended. seconds: of the whole run.
    """

    fault: str
    stage: str
    step: int | None
    happened: str
    seconds: float


def in_short(line: str) -> str:
    """What a run has ended with, for the table: without the folders that are this machine's, cut to 90 characters."""
    said = re.sub(r"""(?:^|(?<=[\s'"(]))(?:\w+:/)?(?:/[^/ :]+)+/""", "", line.removeprefix("distgnn: "))
    return said if len(said) <= 90 else f"{said[:87]}..."


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """All rows, aligned."""
    rows = [{**asdict(outcome), "what happened": outcome.happened} for outcome in outcomes]
    return format_table(rows, COLUMNS)


class MarkedRun:
    """A command under watch.

    Args:
        words: of the command. folder: for its temporary files and its output, made where it is missing.
        environment: besides this process's.
    """

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary, self._output = folder / "tmp", folder / "output.txt"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._shared_before = _shared_memory()
        self.started = time.monotonic()
        own = {_MARK: self.mark, "TMPDIR": str(self.temporary)}
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                list(words),
                env={**os.environ, **(environment or {}), **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_default_signals,
            )

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def processes(self) -> list[psutil.Process]:
        """What is alive of it."""
        return marked_processes(self.mark)

    def wait(self, limit: float) -> int:
        """Its exit code. A run that has not ended `limit` seconds after its start is killed, and the test fails."""
        try:
            return self.process.wait(max(0.0, limit - self.seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it hangs, after {limit:.0f} s:\n{self.output}") from None

    def kill(self) -> None:
        """End all of it, by its process ids."""
        kill_all(self.processes())
        self.process.wait()

    def left(self, grace: float = 10.0) -> list[str]:
        """What it has left behind: processes (some seconds after its end), temporary files, shared memory."""
        deadline = time.monotonic() + grace
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        found = [f"process {process.pid}: {' '.join(_command(process))}" for process in alive]
        files = (path for path in sorted(self.temporary.rglob("*")) if not path.name.startswith("torchinductor_"))
        found += [f"file {path}" for path in files]  # that one torch makes when it is imported, for the machine
        return found + [f"shared memory {name}" for name in sorted(_orphans(_shared_memory() - self._shared_before))]


def _default_signals() -> None:
    """Tests under nohup, or behind a shell's `&`, would pass on that these are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def marked_processes(mark: str) -> list[psutil.Process]:
    """Processes with the mark in the environment that they were started with."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for pid in psutil.pids():
        with suppress(OSError, psutil.NoSuchProcess):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(pid))
    return found


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL each of them, by its id."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _orphans(names: set[str]) -> set[str]:
    """Those that no living process maps: others on this machine use shared memory too."""
    used = set()
    for pid in psutil.pids() if names else ():
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            used |= {name for name in names if f"/dev/shm/{name}" in maps}
    return names - used


def losses(run: Path | str) -> dict[tuple[str, int], float]:
    """By phase and step, of a run at a path or URI; every step must be there once."""
    records = map(json.loads, storage.read_bytes(storage.join(str(run), "metrics.jsonl")).splitlines())
    found = [((r["phase"], r["step"]), r["loss"]) for r in records if "loss" in r]
    assert len(found) == len(dict(found)), "a step is recorded twice"
    return dict(found)


def curve_difference(run: Path | str, undisturbed: Path) -> str:
    """In words, where the losses of two runs part; empty: they are equal to the bit."""
    got, expected = losses(run), losses(undisturbed)
    if got.keys() != expected.keys():
        return f"other steps are recorded: {sorted(got.keys() ^ expected.keys())[:5]}"
    for step, loss in expected.items():
        if got[step] != loss:
            return f"{step[0]} step {step[1]}: loss {got[step]!r} instead of {loss!r}"
    return ""


def damaged_checkpoints(run: Path) -> list[str]:
    """Files of a run's checkpoints that are not what their manifests say, and folders without a sound manifest."""
    whole = list_checkpoints(str(run))
    found = sorted({folder.uri for folder in checkpoint_folders(str(run))} - {info.uri for info in whole})
    for info in whole:
        for name, digest in info.manifest["files"].items():
            path = Path(info.uri, name)
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                found.append(str(path))
    return found
