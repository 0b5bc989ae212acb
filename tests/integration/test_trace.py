"""The timeline of a run with two workers: whole, without overlaps, on one clock; and who is named as the straggler."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from distgnn.cli import main
from distgnn.config import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training import launch
from distgnn.training.run import run_worker
from distgnn.training.trainer import PhaseTrainer
from tests.exactness.datasets import adversarial_log

STEPS, HOPS = 12, 2
A_FEW_MS = 20_000  # microseconds; the machine that tests may give a worker's thread its turn late
STEP_STAGES = ("waiting for the sampler", "copy", "fetch", "forward", "backward", "update", "sampling")
SLOW_RANK, SLOW_SECONDS = 1, 0.05


def settings(folder: Path, topology: str, *more: str) -> list[str]:
    return [
        *adversarial_log(folder),
        f"run.out={folder / 'run'}",
        "run.dtype=float64",
        "run.tensorboard=false",
        "model.dim=8",
        "model.encoder=graphsage",
        "sampler.fanout=2,3",
        f"sampler.topology={topology}",
        "sampler.threads=2",
        "train.batch_size=7",
        f"train.max_steps={STEPS}",
        "partition.parts=5",
        "cluster.workers=2",
        *more,
    ]


def one_slow_worker(config: Any, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """A job: the training, with a worker whose forward pass takes longer."""
    original = PhaseTrainer.__init__

    def slowed(self: PhaseTrainer, *arguments: Any) -> None:
        original(self, *arguments)
        if group.rank == SLOW_RANK:
            self.wrapped.register_forward_pre_hook(lambda *_: time.sleep(SLOW_SECONDS))

    PhaseTrainer.__init__ = slowed  # type: ignore[method-assign]
    return run_worker(config, run, dataset, group)


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


@pytest.mark.parametrize("topology", ["replicated", "partitioned"])
def test_timeline_of_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "trace.json"
    report = launch.run_training(load_config(None, settings(tmp_path, topology, f"run.trace={file}")))
    assert report["topology"] == topology

    content = json.loads(file.read_text())["traceEvents"]
    events = [e for e in content if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in events)
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in content if e["name"] == "thread_name"}
    partitioned = topology == "partitioned"
    communication = {"communication"} if partitioned else set()
    for rank in range(2):
        own = {name for (pid, _), name in threads.items() if pid == rank}
        assert {"trainer", "sampler 0", *communication} <= own <= {"trainer", "sampler 0", "sampler 1", *communication}
    for of_thread in by_thread(events).values():
        assert_nested(of_thread)

    for rank in range(2):
        mine = [e for e in events if e["pid"] == rank and e["cat"] == "fit"]
        for stage in STEP_STAGES:
            steps = [e["args"]["step"] for e in sorted(mine, key=lambda e: e["ts"]) if e["name"] == stage]
            assert sorted(steps) == list(range(STEPS)), stage
            assert stage == "sampling" or steps == sorted(steps)
        names = {e["name"] for e in mine}
        assert {"evaluation", "checkpoint", "record"} <= names
        exchanges = [e["args"]["step"] for e in mine if e["name"] == "exchange" and e["tid"]]
        assert sorted(exchanges) == sorted([*range(STEPS)] * (1 + 2 * HOPS) if partitioned else [])
        turns = [e["args"]["step"] for e in mine if e["name"] == "waiting for the turn"]
        assert turns == exchanges
        fetches = {e["args"]["step"]: e for e in mine if e["name"] == "fetch"}
        for rows in (e for e in mine if e["name"] == "exchange of rows" and e["args"]["step"] in fetches):
            if rows["ts"] < fetches[rows["args"]["step"]]["ts"] + fetches[rows["args"]["step"]]["dur"]:
                assert rows["ts"] + 0.01 >= fetches[rows["args"]["step"]]["ts"]

    gradients = [
        sorted((e for e in events if e["pid"] == rank and e["name"] == "exchange of gradients"), key=lambda e: e["ts"])
        for rank in range(2)
    ]
    assert [len(one) for one in gradients] == [STEPS, STEPS]
    for a, b in zip(*gradients, strict=True):
        assert a["args"] == b["args"]
        assert max(a["ts"], b["ts"]) <= min(a["ts"] + a["dur"], b["ts"] + b["dur"]) + A_FEW_MS

    for stage, seconds in report["seconds_by_worker"].items():
        assert len(seconds) == 2
        assert report["seconds"][stage] == max(seconds)
    for stage, seconds in report["own_seconds_by_worker"].items():
        for own_part, wall in zip(seconds, report["seconds_by_worker"][stage], strict=True):
            assert -1e-9 <= own_part <= wall + 1e-9
    straggler = report["straggler"]
    work = [sum(s[rank] for s in report["own_seconds_by_worker"].values()) for rank in range(2)]
    assert straggler["seconds"] == pytest.approx(max(work))
    assert straggler["of_mean"] == pytest.approx(2 * max(work) / sum(work))


@pytest.mark.parametrize("topology", ["replicated", "partitioned"])
def test_the_slow_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str) -> None:
    """Worker 0 spends as long in each step: it waits for the other one's outputs, in the forward pass too."""
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "TRAIN_JOB", f"{__name__}:one_slow_worker")
    report = launch.run_training(load_config(None, settings(tmp_path, topology)))
    assert report["straggler"]["rank"] == SLOW_RANK
    assert report["straggler"]["stage"] == "forward"
    forward = report["own_seconds_by_worker"]["forward"]
    assert forward[SLOW_RANK] >= STEPS * SLOW_SECONDS > 2 * forward[1 - SLOW_RANK]
    assert report["seconds_by_worker"]["forward"][1 - SLOW_RANK] > STEPS * SLOW_SECONDS / 2


def test_without_the_option_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))

    def refused(*_: Any) -> None:
        raise AssertionError("an event is recorded")

    monkeypatch.setattr("distgnn.timeline.Timeline.__init__", refused)
    report = launch.run_training(load_config(None, settings(tmp_path, "replicated", "cluster.workers=1")))
    assert report["straggler"] is None
    assert [len(seconds) for seconds in report["seconds_by_worker"].values()] == [1] * 8


def test_a_wrong_file_ends_the_command_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = tmp_path / "used.json"
    used.write_text("{}")
    code = main(["train", "--name", "debian-deps", "--out", str(tmp_path / "run"), "--trace", str(used)])
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said == [f"distgnn: run.trace = {str(used)!r} is there already: name another file, or remove it"]
    assert not (tmp_path / "run").exists()


def test_a_submitted_job_refuses_a_relative_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "x"}}')
    code = main(["train", "--name", "debian-deps", "--out", str(tmp_path / "run"), "--trace", "trace.json"])
    assert code == 2
    assert "run.trace = 'trace.json' is relative: under ray job submit" in capsys.readouterr().err
