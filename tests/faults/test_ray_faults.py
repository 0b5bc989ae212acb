"""Faults of jobs on a real Ray cluster: workers killed, stopped, short of memory; a driver killed; a node lost."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.config_reading import load_config
from distgnn.ray_faults import record_of
from distgnn.training.launch import run_training
from tests.faults.harness import MarkedRun, Outcome, curve_difference, damaged_checkpoints, losses
from tests.faults.injection import ANYWHERE, Worker
from tests.ray_cluster import LocalCluster, another_node, kill, start

Note = Callable[[Outcome], None]
pytestmark = pytest.mark.slow  # `make test` kills a worker of a submitted job in test_ray.py

STEPS = 300
OPTIONS = [
    "partition.parts=4",
    "partition.method=random",
    "run.tensorboard=false",
    "train.batch_size=64",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=40",
    "train.epochs=1000",
    f"train.max_steps={STEPS}",
    "sampler.fanout=4,3",
    "model.dim=8",
    "optim.lr=0.01",
    "cluster.threads_per_worker=1",
    "cluster.workers=2",
]
TIMEOUT = 8.0  # of a collective; a step takes some milliseconds
LIMIT = 240.0  # of a run: none may hang
# A dead node is noticed after 3 s instead of 15, and a group that finds no room is given up after 5 s instead of 20.
IMPATIENT = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "6"}
DRIVER = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
OURS = ("RayTrainWorker", "TrainController", "Mailbox", "SynchronizationActor", "PlacementGroupCleaner", "jobs/train")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IMPATIENT.items():
            patch.setenv(name, value)
        found = start(tmp_path_factory.mktemp("ray"))
    yield found
    kill([found.head(), *found.head().children(recursive=True)])
    found.script("stop")  # for its folder in /tmp


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    key = np.unique(np.random.default_rng(3).integers(0, 120 * 60, 2500))
    pq.write_table(pa.table({"user": key // 60, "item": key % 60}), folder / "log.parquet")
    return folder / "log.parquet"


@pytest.fixture(scope="module")
def undisturbed(log: Path) -> Path:
    """The same run on plain processes."""
    run = log.parent / "undisturbed"
    run_training(load_config(None, [*OPTIONS, f"data.input={log}", f"run.out={run}"]))
    return run


class Job:
    """A training on the cluster, its driver a process of ours."""

    def __init__(self, cluster: LocalCluster, log: Path, folder: Path, *overrides: str) -> None:
        self.cluster, self.run = cluster, folder / "run"
        options = [*OPTIONS, "cluster.ray=true", f"data.input={log}", f"run.out={self.run}", *overrides]
        words = [sys.executable, "-m", "distgnn", "train", *settings(*options)]
        self.driver = MarkedRun(words, folder, {**cluster.environment, **DRIVER})

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait for it, while the job runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.driver.process.poll() is None, self.driver.output
            assert time.monotonic() < deadline, f"waited too long:\n{self.driver.output}"
            time.sleep(0.02)

    def workers(self, n: int = 2) -> list[Worker]:
        """The workers of the current attempt, once all of them keep a record."""
        found: list[Worker] = []

        def there() -> bool:
            records = {process.pid: record_of(process.pid) for process in self.cluster.train_workers()}
            found[:] = [Worker(pid, record) for pid, record in sorted(records.items()) if record is not None]
            return len(found) == n

        self.until(there)
        return found

    def finish(self, code: int = 0, limit: float = LIMIT) -> str:
        """Its output, after it has ended as it should and left nothing."""
        ended = self.driver.wait(limit)
        assert ended == code, self.driver.output
        self.leaves_nothing()
        return self.driver.output

    def leaves_nothing(self) -> None:
        """Neither on the machine nor on the cluster."""
        assert self.driver.left() == []
        assert left_on(self.cluster) == []
        assert damaged_checkpoints(self.run) == []


Begin = Callable[..., Job]


@pytest.fixture
def start_job(cluster: LocalCluster, log: Path, tmp_path: Path) -> Iterator[Begin]:
    """Starts jobs of the one run in `tmp_path`; they end with the test."""
    jobs = []

    def begin(*overrides: str) -> Job:
        jobs.append(Job(cluster, log, tmp_path, *overrides))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.driver.kill()


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def verdict(said: str) -> str:
    """The line that a job has ended with; what workers said before it may be shown after it."""
    (line,) = [line for line in said.splitlines() if line.startswith("distgnn: ")]
    return line


def n_records(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def left_on(cluster: LocalCluster, seconds: float = 10.0) -> list[psutil.Process]:
    """Processes of jobs that are still on the cluster, some seconds after the end of all."""
    deadline = time.monotonic() + seconds
    while (found := cluster.processes(*OURS)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("topology", ["replicated", "partitioned"])
def test_three_killed_workers_in_one_run_cost_nothing_but_time(
    start_job: Begin, undisturbed: Path, topology: str, note: Note
) -> None:
    """At seeded moments; of the partitioned topology within the communication thread's exchange."""
    draw = random.Random(7)
    wanted = ANYWHERE if topology == "replicated" else "communication thread"
    job = start_job("cluster.max_failures=3", f"sampler.topology={topology}")
    for part in range(3):
        moment, rank = 90 * part + draw.randrange(60), draw.randrange(2)
        job.until(lambda: n_records(job.run) >= moment)  # noqa: B023
        victim = job.workers()[rank]
        stood = victim.stop_in(wanted, job.driver, moment)
        victim.kill()
        job.until(lambda: f"restart {part + 1} of 3" in job.driver.output)  # noqa: B023
        said = rf"worker [01] \(process {victim.pid} on 127.0.0.1\) has died: its process was killed, .*; restart"
        assert re.search(said, job.driver.output), job.driver.output
        stage = stood.stage if wanted == ANYWHERE else wanted
        note(Outcome(f"Ray, {topology}: SIGKILL", stage, stood.step + 1, "restarted", job.driver.seconds))
    job.finish()
    assert curve_difference(job.run, undisturbed) == ""
    note(Outcome(f"Ray, {topology}: the 3 above", "", None, "completed, same curve", job.driver.seconds))


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("forward", []),
        ("update", []),
        ("exchange of rows", ["cluster.exchange=messages"]),
        ("communication thread", ["sampler.topology=partitioned"]),
        ("checkpoint", ["train.checkpoint_every=20"]),
    ],
)
def test_a_stopped_worker_is_named_with_its_stage_and_replaced(
    start_job: Begin, undisturbed: Path, stage: str, overrides: list[str], note: Note
) -> None:
    job = start_job(f"cluster.timeout_seconds={TIMEOUT}", *overrides)
    victim = job.workers()[1]
    stood = victim.stop_in(stage, job.driver, 60)
    stopped = time.monotonic()
    job.until(lambda: "restart 1 of 3" in job.driver.output)
    assert time.monotonic() - stopped < TIMEOUT + 15
    place = f"in stage {stood.stage}, fit step {stood.step + 1}; restart 1 of 3"
    said = rf"worker [01] \(process {victim.pid} on 127.0.0.1\) is stopped {place}"
    assert re.search(said, job.driver.output), job.driver.output
    victim.wait_until_ended(job.driver)
    job.finish()
    assert curve_difference(job.run, undisturbed) == ""
    note(Outcome("Ray: SIGSTOP", stage, stood.step + 1, "restarted, same curve", job.driver.seconds))


@pytest.mark.parametrize("moment", ["it starts workers", "they train"])
def test_a_killed_controller_is_replaced(
    cluster: LocalCluster, start_job: Begin, undisturbed: Path, moment: str, note: Note
) -> None:
    """Ray's own: its workers end with it, and the driver starts another."""
    job = start_job()
    job.until(lambda: n_records(job.run) >= 90 if moment == "they train" else cluster.train_workers())
    (controller,) = cluster.processes("TrainController")
    os.kill(controller.pid, signal.SIGKILL)
    said = job.finish()
    assert re.search("Ray could not start the workers, or has lost their controller: .*; restart 1 of 3", said), said
    assert curve_difference(job.run, undisturbed) == ""
    note(Outcome("Ray: SIGKILL of its controller", moment, None, "restarted, same curve", job.driver.seconds))


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_never_starts_is_replaced(
    cluster: LocalCluster, start_job: Begin, undisturbed: Path, fault: signal.Signals, note: Note
) -> None:
    """It is noticed at once, or after the 5 s that placing takes and the 120 s that a start is given."""
    job = start_job(f"cluster.timeout_seconds={TIMEOUT}")
    job.until(lambda: len(cluster.train_workers()) == 2)
    victim = cluster.train_workers()[0]
    os.kill(victim.pid, fault)
    said = job.finish(limit=LIMIT + 130)
    assert "; restart 1 of 3" in said, said
    assert not victim.is_running()
    assert curve_difference(job.run, undisturbed) == ""
    note(Outcome(f"Ray: {fault.name} of a worker", "before its start", None, "same curve", job.driver.seconds))


def test_attempts_that_are_used_up_end_in_one_line(start_job: Begin, note: Note) -> None:
    job = start_job("cluster.max_failures=0")
    job.until(lambda: n_records(job.run) >= 30)
    victim = job.workers()[0]
    stood = victim.stop_in(ANYWHERE, job.driver, 30)
    victim.kill()
    said = verdict(job.finish(code=1))
    assert re.fullmatch(rf"distgnn: worker [01] \(process {victim.pid} on 127.0.0.1\) has died: .*crashed", said), said
    note(Outcome("Ray: SIGKILL, no restarts", stood.stage, stood.step + 1, "one line, exit code 1", job.driver.seconds))


def test_a_worker_without_memory_is_named(start_job: Begin, note: Note) -> None:
    """Its address space may not grow any more: an allocation fails, in Python or below."""
    job = start_job("cluster.max_failures=0", f"cluster.timeout_seconds={TIMEOUT}")
    job.until(lambda: n_records(job.run) >= 30)
    victim = job.workers()[1]
    stood = victim.stop_in(ANYWHERE, job.driver, 30)
    process = psutil.Process(victim.pid)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms // 2,) * 2)
    os.kill(victim.pid, signal.SIGCONT)
    said = verdict(job.finish(code=1))
    assert re.match(rf"distgnn: worker [01] \(process {victim.pid} on 127.0.0.1\) (has died|failed)", said), said
    note(Outcome("Ray: memory limit", stood.stage, stood.step + 1, "one line, exit code 1", job.driver.seconds))


@pytest.mark.parametrize("how", ["by hand", "submitted", "a range"])
def test_a_killed_driver_takes_its_workers_along_and_the_run_can_be_resumed(
    cluster: LocalCluster, start_job: Begin, log: Path, undisturbed: Path, tmp_path: Path, how: str, note: Note
) -> None:
    """The CPUs of a range count as taken for up to 45 s more."""
    workers = "cluster.workers=1,2" if how == "a range" else "cluster.workers=2"
    run = tmp_path / "run"
    if how == "submitted":
        words = settings(*OPTIONS, f"data.input={log}", f"run.out={run}")
        assert cluster.submit("train", *words, wait=False, name="driver").returncode == 0
        deadline = time.monotonic() + LIMIT
        while n_records(run) < 90:
            assert time.monotonic() < deadline, cluster.logs("driver")
            time.sleep(0.02)
        (driver,) = [process.pid for process in cluster.processes("jobs/train") if "python" in process.name()]
        os.kill(driver, signal.SIGKILL)
    else:
        job = start_job(workers)
        job.until(lambda: n_records(run) >= 90)
        os.kill(job.driver.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert left_on(cluster) == []
    gone = time.monotonic() - killed
    if how == "submitted":
        assert cluster.status("driver") == "FAILED"
    else:
        assert job.driver.left() == []
    resumed = start_job(workers, "run.resume=true", "cluster.wait_seconds=60")
    resumed.finish()
    if how == "a range":
        assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-4)
    else:
        assert curve_difference(run, undisturbed) == ""
    happened = f"workers gone after {gone:.1f} s, resumed, same curve"
    note(Outcome(f"Ray, {how}: SIGKILL of the driver", "any", None, happened, resumed.driver.seconds))


def test_a_lost_node_is_waited_for_and_the_run_ends_in_one_line(
    cluster: LocalCluster, start_job: Begin, undisturbed: Path, note: Note
) -> None:
    with another_node(cluster) as node:
        job = start_job("cluster.workers=3", "cluster.wait_seconds=6")
        job.until(lambda: n_records(job.run) >= 60)
        kill([node, *node.children(recursive=True)])
        lost = time.monotonic()
        said = job.finish(code=2)
        seconds = time.monotonic() - lost
    assert re.search(r"worker \d \(process \d+ on 127.0.0.2\) (cannot be reached|has died)", said), said
    message = (
        "distgnn: the Ray cluster has too few nodes: this one needs 3 CPUs of which 2 are free, and has waited 6 s"
    )
    assert verdict(said).startswith(message)
    start_job("cluster.workers=2", "run.resume=true").finish()
    assert losses(job.run) == pytest.approx(losses(undisturbed), rel=1e-4)
    happened = f"one line after {seconds:.0f} s (cluster.wait_seconds = 6); resumed on 2 workers, same curve"
    note(Outcome("Ray: a node is lost, workers = 3", "any", None, happened, job.driver.seconds))


def test_a_lost_node_of_a_range_is_done_without(
    cluster: LocalCluster, start_job: Begin, undisturbed: Path, note: Note
) -> None:
    with another_node(cluster) as node:
        time.sleep(21)  # Ray looks every 20 s which nodes there are
        job = start_job("cluster.workers=1,3")
        job.until(lambda: n_records(job.run) >= 60)
        kill([node, *node.children(recursive=True)])
        said = job.finish()
    assert re.search(r"worker \d \(process \d+ on 127.0.0.2\) (cannot be reached|has died).*; restart 1 of 3", said), (
        said
    )
    assert re.search(r"going on from fit step \d+ on 2 workers", said), said
    assert losses(job.run) == pytest.approx(losses(undisturbed), rel=1e-4)
    happened = "went on with the 2 workers left, same curve"
    note(Outcome("Ray: a node is lost, workers = [1, 3]", "any", None, happened, job.driver.seconds))
