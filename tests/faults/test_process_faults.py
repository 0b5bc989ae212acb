"""Worker processes that are killed or stop, in every stage and at any moment, and supervisors that are."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.beat import START, Place
from tests.faults.harness import MarkedRun, Outcome, curve_difference, damaged_checkpoints, losses
from tests.faults.injection import ANYWHERE, Worker

Note = Callable[[Outcome], None]
LIMIT = 300.0  # seconds for a run, restarts included
TIMEOUT = 8  # cluster.timeout_seconds of the runs in which a worker stops
OPTIONS = {
    "cluster.workers": "2",
    "cluster.threads_per_worker": "1",
    "partition.parts": "2",
    "partition.method": "random",
    "train.batch_size": "512",
    "train.log_every": "1",
    "train.phase": "fit",
    "train.epochs": "2",
    "train.checkpoint_every": "4",
    "sampler.fanout": "6,4",
    "model.dim": "32",
    "model.encoder": "graphsage",
    "model.tower": "mlp",
    "model.dropout": "0.2",
    "optim.lr": "0.01",
    "run.tensorboard": "false",
}
WAYS: dict[str, dict[str, str]] = {  # for embedding rows, and for what is sampled
    "memory": {},
    "messages": {"cluster.exchange": "messages"},
    "partitioned": {"cluster.exchange": "messages", "sampler.topology": "partitioned"},
    "mailboxes": {"sampler.topology": "partitioned"},
}


@dataclass(frozen=True)
class Lab:
    """Where the runs of this module are.

    Attributes:
        folder: of all, and of the log that they train on.
    """

    folder: Path

    def start(self, name: str, options: Mapping[str, str] | None = None, *more: str) -> MarkedRun:
        """Start `distgnn train` in a folder of that name."""
        words = [sys.executable, "-m", "distgnn", "train", "--input", str(self.folder / "log.parquet")]
        words += ["--out", str(self.run(name)), *more]
        for key, value in {**OPTIONS, **(options or {})}.items():
            words += ["--set", f"{key}={value}"]
        environment = {"DISTGNN_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        return MarkedRun(words, self.folder / name, environment)

    def run(self, name: str) -> Path:
        """Its run directory."""
        return self.folder / name / "run"

    def metrics(self, name: str) -> dict[str, float]:
        """Of its report."""
        found: dict[str, float] = json.loads((self.run(name) / "report.json").read_text())["metrics"]
        return found

    def check(self, name: str, run: MarkedRun) -> None:
        """It has ended as if nobody had disturbed it, and has left nothing."""
        assert run.wait(LIMIT) == 0, run.output
        assert curve_difference(self.run(name), self.run("undisturbed")) == "", run.output
        assert damaged_checkpoints(self.run(name)) == []
        assert self.metrics(name) == self.metrics("undisturbed")
        assert (self.run(name) / "embeddings" / "manifest.json").exists()
        assert list(self.run(name).rglob(".*partial*")) == []
        assert "Traceback" not in run.output
        assert run.left() == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """With an undisturbed run."""
    folder = tmp_path_factory.mktemp("lab")
    key = np.unique(np.random.default_rng(5).integers(0, 1500 * 600, 20_000))
    pq.write_table(pa.table({"user": key // 600, "item": key % 600}), folder / "log.parquet")
    found = Lab(folder)
    run = found.start("undisturbed")
    assert run.wait(LIMIT) == 0, run.output
    assert run.left() == []
    assert len(losses(found.run("undisturbed"))) > 60
    return found


def restarts(run: MarkedRun) -> list[str]:
    """The lines that tell of them."""
    return [line for line in run.output.splitlines() if re.search(r"\(restart \d of \d\)$", line)]


def in_words(place: Place) -> str:
    """Where a worker stands, as the supervisor says it."""
    step = f", {place.phase} step {place.step + 1}" if place.stage != START else ""
    return f"in stage {place.stage}{step}"


def strike_three_times(
    lab: Lab, name: str, way: str, strikes: Iterable[tuple[int, str, int, bool]], note: Note
) -> None:
    """Kill, or leave stopped, three workers of one run, which must go on each time and end well.

    Args:
        way: one of WAYS. strikes: rank, one of STAGES, after how many steps, and whether it is killed.
    """
    run = lab.start(name, {**WAYS[way], "cluster.timeout_seconds": str(TIMEOUT)})
    stood = []
    try:
        for rank, stage, after, killed in strikes:
            worker = Worker.find(run, rank)
            stood.append((rank, stage, worker.stop_in(stage, run, after), killed))
            if killed:
                worker.kill()
            worker.wait_until_ended(run)
        lab.check(name, run)
    finally:
        run.kill()
    said = restarts(run)
    assert len(said) == 3, run.output
    for (rank, stage, place, killed), line in zip(stood, said, strict=True):
        how = r"was killed by signal 9 \(SIGKILL\)" if killed else r"has (not moved|kept the others waiting) for .*"
        goes_on = "(going on from fit step .*|starting again)"
        match = re.match(rf"worker {rank} {how} {re.escape(in_words(place))}; {goes_on} \(restart", line)
        assert match, line
        step = match[match.lastindex or 0]
        assert step == "starting again" or f"\n{step} on 2 workers\n" in run.output  # as the workers say themselves
        fault = f"{'SIGKILL' if killed else 'SIGSTOP'} of worker {rank}"
        where = place.stage if stage == ANYWHERE else stage
        happened = f"same curve, one of three in a run ({way})"
        note(Outcome(fault, where, place.step + 1, happened, run.seconds))


def test_killed_three_times_in_one_run(lab: Lab, note: Note) -> None:
    strikes = ((1, "forward", 12), (0, "checkpoint", 20), (1, "an exchange", 30))
    strike_three_times(lab, "thrice", "memory", [(*strike, True) for strike in strikes], note)


EVERY_STAGE = [
    ("memory", ("sampling", "fetch", "an exchange")),
    ("memory", ("forward", "backward", "update")),
    ("memory", ("evaluation", "checkpoint", "publishing")),
    ("partitioned", ("communication thread", "an exchange", "sampling")),
    ("mailboxes", ("sampling", "communication thread", "an exchange")),
    ("messages", ("exchange of rows", "update", "publishing")),
]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
@pytest.mark.parametrize("ranks", [(0, 1, 0), (1, 0, 1)], ids=["0", "1"])
@pytest.mark.parametrize(("way", "stages"), EVERY_STAGE)
def test_in_every_stage(
    lab: Lab,
    note: Note,
    way: str,
    stages: tuple[str, ...],
    ranks: tuple[int, ...],
    killed: bool,
    request: pytest.FixtureRequest,
) -> None:
    # One that goes on from the end does not come to the stages before it.
    strikes = [(rank, stage, 3, killed) for rank, stage in zip(ranks, stages, strict=True)]
    strike_three_times(lab, request.node.name, way, strikes, note)


@pytest.mark.slow
def test_killed_before_the_first_step(lab: Lab, note: Note) -> None:
    strikes = [(rank, stage, 0, True) for rank, stage in ((0, "start"), (1, "start"), (0, "fetch"))]
    strike_three_times(lab, "start", "memory", strikes, note)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
def test_at_any_moment(lab: Lab, note: Note, seed: int) -> None:
    rng = np.random.default_rng(seed)
    strikes = [(int(rng.integers(2)), ANYWHERE, int(step), True) for step in np.sort(rng.integers(1, 60, 3))]
    strike_three_times(lab, f"seed-{seed}", list(WAYS)[seed % len(WAYS)], strikes, note)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_attempts_end(lab: Lab, note: Note, killed: bool) -> None:
    name = f"attempts-{killed}"
    run = lab.start(name, {"cluster.max_failures": "0", "cluster.timeout_seconds": str(TIMEOUT)})
    worker = Worker.find(run, 1)
    place = worker.stop_in("backward", run, 3)
    if killed:
        worker.kill()
    assert run.wait(LIMIT) == 1, run.output
    last = run.output.splitlines()[-1]
    assert last.startswith("distgnn: worker 1 ")
    assert last.endswith(f"{in_words(place)}; the run is stopped")
    assert "Traceback" not in run.output
    assert run.left() == []
    fault = f"{'SIGKILL' if killed else 'SIGSTOP'} of worker 1"
    note(Outcome(fault, place.stage, place.step + 1, "stops in one line", run.seconds))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_supervisor_is_ended(lab: Lab, note: Note, number: signal.Signals) -> None:
    name = f"supervisor-{number.name}"
    run = lab.start(name)
    worker = Worker.find(run, 0)
    place = worker.stop_in("update", run, 12)  # a stopped one has to go too
    os.kill(run.process.pid, number)
    code = run.wait(LIMIT)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}[number]
    ended = run.seconds
    left = run.left()
    if number == signal.SIGKILL:
        assert all(".distgnn-workers.partial-" in file for file in left), left
    else:
        assert left == []
        assert run.output.count("\ndistgnn: ") == 1, run.output
    again = lab.start(name, None, "--resume")  # in the same temporary folder
    lab.check(name, again)
    happened = f"exit code {code}; no worker is left; --resume: same curve"
    note(Outcome(f"{number.name} of the supervisor", place.stage, place.step + 1, happened, ended))
