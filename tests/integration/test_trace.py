"""The timeline of a run: whole, without overlaps, on one clock; and who is named as the straggler."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from distgnn.cli import main
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training import launch
from distgnn.training.run import run_worker
from distgnn.training.trainer import PhaseTrainer
from tests.exactness.datasets import adversarial_log

STEPS, HOPS = 12, 2
STEP_STAGES = ("waiting for the sampler", "copy", "fetch", "forward", "backward", "update", "sampling")
IN_MEMORY = {"exchange of rows": "fetch", "exchange of gradients": "update"}
COLLECTIVES = {"exchange of ids": "fetch", **IN_MEMORY}
EXCHANGE = {"replicated": "memory", "partitioned": "messages"}
TOPOLOGIES = ("replicated", "partitioned")
SLOW_RANK, SLOW_SECONDS = 1, 1000.0  # on a clock that is put forward: nobody sleeps, and no noise comes near


def settings(folder: Path, *more: str) -> list[str]:
    return [
        *adversarial_log(folder),
        f"run.out={folder / 'run'}",
        "run.dtype=float64",
        "run.tensorboard=false",
        "model.dim=8",
        "model.encoder=graphsage",
        "sampler.fanout=2,3",
        "sampler.threads=2",
        "train.batch_size=7",
        f"train.max_steps={STEPS}",
        "partition.parts=5",
        *more,
    ]


def traced_runs(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """A job: both topologies with a timeline; then without, with a worker that is slow, and one that is so once."""
    reports = {}

    def train(name: str, topology: str, trace: str = "") -> None:
        one = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, trace=trace),
            sampler=dataclasses.replace(config.sampler, topology=topology),
            cluster=dataclasses.replace(config.cluster, exchange=EXCHANGE[topology] if trace else "messages"),
        )
        reports[name] = run_worker(one, f"{run}-{name}", dataset, group)

    for topology in TOPOLOGIES:
        train(topology, topology, f"{run}-{topology}.json")
    slow = SlowWorker(group)
    for topology in TOPOLOGIES:
        slow.steps = STEPS
        train(f"slow-{topology}", topology)
    slow.steps = 1
    train("slow once", "replicated")
    return {**reports["replicated"], "reports": reports}


class SlowWorker:
    """Of one worker the forward pass takes long, and of the other, which waits for it, the exchange of outputs.

    Attributes:
        steps: in which it is still to be slow.
    """

    def __init__(self, group: WorkerGroup) -> None:
        self.steps, self.ahead = 0, 0.0
        clock, made, all_to_all = time.perf_counter, PhaseTrainer.__init__, dist.all_to_all_single
        time.perf_counter = lambda: clock() + self.ahead

        def with_hook(trainer: PhaseTrainer, *arguments: Any) -> None:
            made(trainer, *arguments)
            trainer.wrapped.register_forward_pre_hook(slow_step)

        def slow_step(*_: Any) -> None:
            if self.steps:
                self.steps -= 1
                self.ahead += SLOW_SECONDS

        def waiting(*arguments: Any, **options: Any) -> Any:
            if options["group"] is group.gather:
                self.ahead += SLOW_SECONDS
            return all_to_all(*arguments, **options)

        if group.rank == SLOW_RANK:
            PhaseTrainer.__init__ = with_hook  # type: ignore[method-assign]
        else:
            dist.all_to_all_single = waiting


@dataclasses.dataclass(frozen=True)
class Traced:
    """What the job has left: reports by name, and the file of each topology."""

    reports: dict[str, dict[str, Any]]
    files: dict[str, Path]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    folder = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTGNN_CACHE", str(folder / "cache"))
        patch.setattr(launch, "TRAIN_JOB", f"{__name__}:traced_runs")
        report = launch.run_training(load_config(None, settings(folder, "cluster.workers=2")))
    return Traced(report["reports"], {name: folder / f"run-{name}.json" for name in TOPOLOGIES})


def read_trace(file: Path) -> tuple[list[dict[str, Any]], dict[tuple[int, int], str]]:
    """The events, and the threads' names by process and thread, of a file with all that a viewer requires."""
    content = json.loads(file.read_text())["traceEvents"]
    events = [e for e in content if e["ph"] == "X"]
    labels = [e for e in content if e["ph"] == "M"]
    assert len(events) + len(labels) == len(content)
    for event in events:
        assert {*event} == {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    assert all({*label} == {"ph", "name", "pid", "tid", "args"} for label in labels)
    processes = {label["pid"]: label["args"]["name"] for label in labels if label["name"] == "process_name"}
    assert processes == {rank: f"worker {rank}" for rank in range(len(processes))}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in labels if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events} == {*threads}
    return events, threads


def by_thread(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found = defaultdict(list)
    for event in events:
        found[event["pid"], event["tid"]].append(event)
    return found


def assert_nested(events: list[dict[str, Any]]) -> None:
    """Two events of a thread are apart, or one lies within the other."""
    open_until: list[float] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        stop = event["ts"] + event["dur"]
        while open_until and open_until[-1] <= event["ts"] + 0.01:
            open_until.pop()
        assert not open_until or stop <= open_until[-1] + 0.01, event
        open_until.append(stop)


def assert_whole(events: list[dict[str, Any]], ranks: int) -> None:
    """Each worker has each stage of each step once, in order, and no thread does two things at once."""
    for of_thread in by_thread(events).values():
        assert_nested(of_thread)
        stages = sorted((e for e in of_thread if e["name"] in STEP_STAGES), key=lambda e: e["ts"])
        for first, second in zip(stages, stages[1:], strict=False):
            assert first["ts"] + first["dur"] <= second["ts"] + 0.01
    for rank in range(ranks):
        mine = [e for e in events if e["pid"] == rank and e["cat"] == "fit"]
        for stage in STEP_STAGES:
            steps = [e["args"]["step"] for e in sorted(mine, key=lambda e: e["ts"]) if e["name"] == stage]
            assert sorted(steps) == list(range(STEPS)), stage
            assert stage == "sampling" or steps == sorted(steps)
        assert {"evaluation", "checkpoint", "record", "export"} <= {e["name"] for e in mine}


def test_timeline_of_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "trace.json"
    report = launch.run_training(load_config(None, settings(tmp_path, f"run.trace={file}")))
    events, threads = read_trace(file)
    assert_whole(events, 1)
    assert {*threads.values()} <= {"trainer", "sampler 0", "sampler 1"}
    assert not any("exchange" in e["name"] for e in events)
    assert report["straggler"] is None
    assert report["blocked_share"] == report["seconds"]["blocked"] / report["seconds"]["training"] > 0


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_timeline_of_two_workers(traced: Traced, topology: str) -> None:
    assert traced.reports[topology]["topology"] == topology
    events, threads = read_trace(traced.files[topology])
    assert_whole(events, 2)
    partitioned = topology == "partitioned"
    communication = {"communication"} if partitioned else set()
    for rank in range(2):
        own = {name for (pid, _), name in threads.items() if pid == rank}
        assert {"trainer", "sampler 0", *communication} <= own <= {"trainer", "sampler 0", "sampler 1", *communication}
        mine = [e for e in events if e["pid"] == rank and e["cat"] == "fit"]
        by_communication = [e for e in mine if threads[rank, e["tid"]] == "communication"]
        exchanges = [e["args"]["step"] for e in by_communication if e["name"] == "exchange"]
        assert sorted(exchanges) == sorted([*range(STEPS)] * (1 + 2 * HOPS) if partitioned else [])
        turns = [e["args"]["step"] for e in by_communication if e["name"] == "waiting for the turn"]
        assert turns == exchanges
        for name in COLLECTIVES if partitioned else IN_MEMORY:
            assert [e["args"]["step"] for e in collectives(mine, rank, name)] == list(range(STEPS)), name


def collectives(events: list[dict[str, Any]], rank: int, name: str) -> list[dict[str, Any]]:
    """Those of a worker that lie within their step's stage."""
    mine = sorted((e for e in events if e["pid"] == rank), key=lambda e: e["ts"])
    stages = {e["args"]["step"]: e for e in mine if e["name"] == COLLECTIVES[name]}
    return [e for e in mine if e["name"] == name and lies_within(e, stages[e["args"]["step"]])]


def lies_within(event: dict[str, Any], stage: dict[str, Any]) -> bool:
    after = event["ts"] + event["dur"] - stage["ts"] - stage["dur"]
    return event["ts"] + 0.01 >= stage["ts"] and after <= 0.01


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_workers_of_one_machine_are_on_one_clock(traced: Traced, topology: str) -> None:
    """Nobody knows what the other one asks for before that has entered."""
    events, _ = read_trace(traced.files[topology])
    for a, b in zip(*(collectives(events, rank, "exchange of ids") for rank in range(2)), strict=True):
        assert a["args"] == b["args"]
        assert max(a["ts"], b["ts"]) <= min(a["ts"] + a["dur"], b["ts"] + b["dur"])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_seconds_of_each_worker(traced: Traced, topology: str) -> None:
    report = traced.reports[topology]
    walls, own = report["seconds_by_worker"], report["own_seconds_by_worker"]
    for stage, seconds in walls.items():
        assert len(seconds) == 2
        assert report["seconds"][stage] == max(seconds)
    assert list(own) == ["blocked", "fetch", "forward", "backward", "optimizer"]
    for stage, seconds in own.items():
        for part, wall in zip(seconds, walls[stage], strict=True):
            whole = stage == "blocked" and topology == "replicated"  # nobody is waited for
            assert part == pytest.approx(wall) if whole else 0 < part < wall
    shares = [blocked / training for blocked, training in zip(walls["blocked"], walls["training"], strict=True)]
    assert report["blocked_share"] == max(shares)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_slow_worker_is_named(traced: Traced, topology: str) -> None:
    """The other one's forward pass takes as long, but that is a wait."""
    report = traced.reports[f"slow-{topology}"]
    straggler, other = report["straggler"], 1 - SLOW_RANK
    assert straggler["rank"] == SLOW_RANK
    assert straggler["stage"] == "forward"
    assert straggler["stage_lost_seconds"] == pytest.approx(STEPS * SLOW_SECONDS, rel=0.01)
    assert report["seconds_by_worker"]["forward"][other] >= STEPS * SLOW_SECONDS
    assert straggler["others_seconds"] < SLOW_SECONDS
    assert straggler["seconds"] == pytest.approx(sum(s[SLOW_RANK] for s in report["own_seconds_by_worker"].values()))


def test_a_worker_that_was_slow_once_is_not_named(traced: Traced) -> None:
    report = traced.reports["slow once"]
    first, second = (sum(s[rank] for s in report["own_seconds_by_worker"].values()) for rank in range(2))
    assert abs(first - second) > 0.9 * SLOW_SECONDS
    assert report["straggler"] is None


def test_without_the_option_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))

    def refused(*_: Any) -> None:
        raise AssertionError("an event is recorded")

    monkeypatch.setattr("distgnn.timeline.Timeline.__init__", refused)
    report = launch.run_training(load_config(None, settings(tmp_path)))
    assert report["straggler"] is None
    assert [len(seconds) for seconds in report["seconds_by_worker"].values()] == [1] * 8


SHORT = ("--set", "train.max_steps=1")  # if it does begin


def test_a_wrong_file_ends_the_command_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = tmp_path / "used.json"
    used.write_text("{}")
    code = main(["train", "--name", "debian-deps", "--out", str(tmp_path / "run"), "--trace", str(used), *SHORT])
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said == [f"distgnn: run.trace = {str(used)!r} is there already: name another file, or remove it"]
    assert not (tmp_path / "run").exists()


def test_a_submitted_job_refuses_a_relative_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "x"}}')
    code = main(["train", "--name", "debian-deps", "--out", str(tmp_path / "run"), "--trace", "trace.json", *SHORT])
    assert code == 2
    assert "run.trace = 'trace.json' is relative: under ray job submit" in capsys.readouterr().err
