"""A dead worker ends the run with its rank, a mistake seen by a worker arrives as one, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import beat
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.ordered_exchange import OrderedExchange
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.timeline import FORWARD
from distgnn.training import launch
from distgnn.training.launch import run_training
from distgnn.types import UserError, WorkerError


def config(tmp_path: Path, *overrides: str) -> Config:
    rng = np.random.default_rng(0)
    key = np.unique(rng.integers(0, 80 * 50, 1500))
    pq.write_table(pa.table({"user": key // 50, "item": key % 50}), tmp_path / "log.parquet")
    defaults = [
        f"data.input={tmp_path}/log.parquet",
        f"run.out={tmp_path}/run",
        "run.tensorboard=false",
        "cluster.workers=2",
        "cluster.max_failures=0",
        "train.batch_size=64",
        "train.log_every=1",
        "model.dim=8",
    ]
    return load_config(None, [*defaults, *overrides])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))


def workers() -> dict[int, psutil.Process]:
    """This process's worker children by rank."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            command = child.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if "distgnn.training.worker" in command:
            found[int(command[-1])] = child
    return found


class Killer(threading.Thread):
    """Signals one worker once the run has logged some steps, and remembers all of them."""

    def __init__(self, run: Path, rank: int, number: int) -> None:
        super().__init__(daemon=True)
        self.run_path, self.rank, self.number = run, rank, number
        self.seen: dict[int, psutil.Process] = {}

    def run(self) -> None:
        deadline = time.monotonic() + 60
        metrics = self.run_path / "metrics.jsonl"
        while time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= 3:
                self.seen = workers()
                os.kill(self.seen[self.rank].pid, self.number)
                return
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("rank", "number"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)],
    ids=["0 KILL", "1 KILL", "1 TERM"],
)
def test_a_dead_worker_ends_the_run_by_name(tmp_path: Path, rank: int, number: signal.Signals) -> None:
    killer = Killer(tmp_path / "run", rank, number)
    killer.start()
    started = time.monotonic()
    with pytest.raises(WorkerError, match=f"worker {rank} was killed by signal {int(number)}"):
        run_training(config(tmp_path, "train.max_steps=1000000", "train.epochs=1000000", "train.eval_every=0"))
    assert time.monotonic() - started < 60
    killer.join()
    assert sorted(killer.seen) == [0, 1]
    assert not any(process.is_running() for process in killer.seen.values())
    assert workers() == {}
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder=torch_geometric.nn.NoSuchConv", "is not a bipartite PyG layer"),
        ("optim.lr=1e30", "training diverged"),
    ],
)
def test_a_mistake_that_a_worker_sees_arrives_in_words_and_is_not_tried_again(
    tmp_path: Path, override: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        run_training(config(tmp_path, "train.max_steps=50", "loss.name=bpr", "cluster.max_failures=3", override))
    assert workers() == {}
    assert "restart" not in capfd.readouterr().err


def one_loops(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> None:
    """A job: worker 1 loops in its forward pass, and worker 0 waits for it."""
    beat.at(FORWARD, 4, "fit")
    while group.rank == 1:
        pass
    group.barrier()


def test_a_worker_that_loops_is_named_with_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "TRAIN_JOB", f"{__name__}:one_loops")
    with pytest.raises(WorkerError, match=r"^worker 1 has .* in stage forward, fit step 5;"):
        run_training(config(tmp_path, "cluster.timeout_seconds=3"))
    assert workers() == {}
    assert "Traceback" not in capfd.readouterr().err


class SlowEnd:
    """Taken down with the interpreter, and makes that last until the other worker is gone."""

    def __init__(self, note: Path) -> None:
        self.note = str(note)

    def __del__(self, create: Any = os.mkdir, wait: Any = time.sleep) -> None:  # by then no module can be relied on
        create(self.note)
        wait(2)


def one_fails_within_an_exchange(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> None:
    """A job: worker 0 fails while its communication thread waits for worker 1, which ends once worker 0 is ending."""
    exchange = OrderedExchange(group.rank, group.size, group.new_cpu_group(), group.watch)
    note = Path(run) / "ending"
    if group.rank == 0:
        sys.modules["slow end"] = SlowEnd(note)  # type: ignore[assignment]
        exchange.begin(0, 1, width=1, rounds=1)
        exchange.call(0, np.zeros(2, np.int64), [1, 1])
        raise ZeroDivisionError("a mistake")
    while not note.exists():
        time.sleep(0.02)
    os._exit(0)


def test_a_worker_that_fails_within_an_exchange_ends_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "TRAIN_JOB", f"{__name__}:one_fails_within_an_exchange")
    with pytest.raises(WorkerError, match="worker 0 ended with status 1"):
        run_training(config(tmp_path))
    assert "ZeroDivisionError: a mistake" in capfd.readouterr().err
