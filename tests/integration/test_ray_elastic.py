"""Real Ray clusters of two nodes: one job on both; a range of workers whose nodes come, go, or are held by others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.config_reading import load_config
from distgnn.partition.prepare import prepare
from distgnn.training.checkpoint import list_checkpoints
from distgnn.training.launch import run_training
from tests.moto_server import s3_bucket, s3_server
from tests.ray_cluster import LocalCluster, another_node, kill, start

__all__ = ["s3_bucket", "s3_server"]

OPTIONS = [
    "partition.parts=4",
    "partition.method=random",
    "run.dtype=float64",
    "run.tensorboard=false",
    "train.batch_size=64",
    "train.log_every=1",
    "train.eval_every=0",
    "train.epochs=10000000",
    "sampler.fanout=4,3",
    "model.dim=8",
    "optim.lr=0.01",
    "cluster.threads_per_worker=1",
]
RANGE = ["cluster.workers=1,2", "cluster.resize_seconds=2", "train.checkpoint_every=40"]
# A dead node is noticed after 1 s instead of 15, and a group that finds no room is given up after 5 s instead of 20.
IMPATIENT = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "2"}
DRIVER = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head's own cache."""
    return tmp_path_factory.mktemp("head-cache")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[LocalCluster]:
    """A head of one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**IMPATIENT, **CREDENTIALS, "DISTGNN_CACHE": str(cache)}.items():
            patch.setenv(name, value)
        found = start(tmp_path_factory.mktemp("ray"), "--num-cpus=1")
    yield found
    kill([found.head(), *found.head().children(recursive=True)])


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    key = np.unique(np.random.default_rng(3).integers(0, 90 * 60, 1800))
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": key // 60, "item": key % 60}), path)
    return path


@contextmanager
def training(cluster: LocalCluster, said: Path, *overrides: str) -> Iterator[Callable[[], str]]:
    """A training in a process of its own; what it has said so far, while it has not failed. Stopped in the end."""
    words = [word for o in (*OPTIONS, "cluster.ray=true", *overrides) for word in ("--set", o)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with said.open("wb") as file:
        process = psutil.Popen(
            [sys.executable, "-m", "distgnn", "train", *words],
            env={**environment, **cluster.environment, "DISTGNN_CACHE": os.environ["DISTGNN_CACHE"], **DRIVER},
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def output() -> str:
        text = said.read_text()
        assert process.poll() in (None, 0), text
        return text

    try:
        yield output
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it gives back what it has reserved
            psutil.wait_procs([process], 30)
    finally:
        kill([process])


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def losses(content: str) -> dict[int, float]:
    """By step, of a metrics.jsonl that may be in the middle of being written; every step is there once."""
    records = [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("\n")]
    found = [(record["step"], record["loss"]) for record in records]
    assert len(found) == len(dict(found))
    return dict(found)


def losses_of(run: Path) -> dict[int, float]:
    metrics = run / "metrics.jsonl"
    return losses(metrics.read_text()) if metrics.exists() else {}


def starts(said: str, workers: str) -> list[int]:
    """Steps that so many workers have started from."""
    return [int(step) for step in re.findall(rf"going on from fit step (\d+) on {workers}\b", said)]


def n_shards(run: Path) -> int:
    """Workers that wrote the last checkpoint."""
    found = list_checkpoints(str(run))[-1:]
    return sum(name.startswith("shard-") for info in found for name in info.manifest["files"])


@pytest.mark.slow
def test_two_nodes_with_caches_of_their_own_compute_what_one_process_does(
    cluster: LocalCluster, cache: Path, log: Path, s3_bucket: str, tmp_path: Path
) -> None:
    """Dataset and run lie in an object store; what a node needs of them it fetches into its own cache."""
    steps = ["train.max_steps=30", "run.dump_blocks=true", "sampler.topology=partitioned"]
    data = [f"data.path={s3_bucket}/dataset"]
    prepare(load_config(None, [*OPTIONS, f"data.input={log}", f"run.out={s3_bucket}/dataset"]), log=lambda line: None)
    with another_node(cluster, **CREDENTIALS, DISTGNN_CACHE=str(tmp_path / "cache-2")):
        job = [*data, *steps, "cluster.workers=2", f"run.out={s3_bucket}/run"]
        with training(cluster, tmp_path / "said", *job) as said:
            until(lambda: "report: " in said())
    assert storage.read_json(f"{s3_bucket}/run/report.json")["workers"] == 2
    run_training(load_config(None, [*OPTIONS, *data, *steps, f"run.out={tmp_path / 'plain'}"]))
    plain = losses_of(tmp_path / "plain")
    assert len(plain) == 30
    assert losses(storage.read_bytes(f"{s3_bucket}/run/metrics.jsonl").decode()) == pytest.approx(plain, rel=1e-9)
    names = [file.name for file in sorted((tmp_path / "plain" / "blocks" / "fit").iterdir())]
    assert len(names) == 30
    assert storage.names_in(f"{s3_bucket}/run/blocks/fit") == names
    for name in names:
        expected = (tmp_path / "plain" / "blocks" / "fit" / name).read_bytes()
        assert storage.read_bytes(f"{s3_bucket}/run/blocks/fit/{name}") == expected
    files = storage.read_json(f"{s3_bucket}/dataset/manifest.json")["files"]
    rows = {files[f"partitions/random-4/fit/part-{part:04d}/indices.npy"]["sha256"]: part for part in range(4)}
    fetched = [
        {rows[folder.name] for folder in (root / "objects").iterdir() if folder.name in rows}
        for root in (cache, tmp_path / "cache-2")
    ]
    assert sorted(map(sorted, fetched)) == [[0, 1], [2, 3]]  # its own partitions', and no others'


@pytest.mark.slow
def test_a_node_goes_and_another_comes(cluster: LocalCluster, log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = [f"data.input={log}", f"run.out={run}", *RANGE, "train.max_steps=10000000"]
    with ExitStack() as nodes, training(cluster, tmp_path / "said", *job) as said:
        with another_node(cluster):  # which Ray knows of within 20 s: it starts one worker, or two
            until(lambda: said() and n_shards(run) == 2)
            before = list_checkpoints(str(run))[-1].step
        until(lambda: starts(said(), "1 worker"))
        left = starts(said(), "1 worker")[-1]
        assert left >= before
        until(lambda: said() and max(losses_of(run)) > left + 45)
        nodes.enter_context(another_node(cluster))
        until(lambda: any(step > left for step in starts(said(), "2 workers")))
        joined = starts(said(), "2 workers")[-1]
        assert joined >= left + 40
        until(lambda: said() and max(losses_of(run)) > joined + 20)
    got = losses_of(run)
    assert sorted(got) == list(range(1, len(got) + 1))
    plain = [f"data.input={log}", f"run.out={tmp_path / 'whole'}", f"train.max_steps={len(got)}"]
    run_training(load_config(None, [*OPTIONS, *plain]))
    assert got == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-9)


HOLD = """
import os, time, ray
ray.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR")
@ray.remote(num_cpus=1)
class Holder:
    def ready(self): return True
holder = Holder.remote()
ray.get(holder.ready.remote())
print("holds", flush=True)
time.sleep(600)
"""


@contextmanager
def holding_a_cpu(cluster: LocalCluster) -> Iterator[None]:
    other = psutil.Popen([sys.executable, "-c", HOLD], env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "holds\n"
        yield
    finally:
        kill([other])


@pytest.mark.slow
def test_what_another_job_holds_is_done_without(cluster: LocalCluster, log: Path, tmp_path: Path) -> None:
    """Ray believes that both CPUs can be had, and places one worker alone."""
    run = tmp_path / "run"
    with holding_a_cpu(cluster), another_node(cluster):
        time.sleep(21)  # Ray looks every 20 s which nodes there are
        job = [f"data.input={log}", f"run.out={run}", *RANGE, "train.max_steps=30"]
        with training(cluster, tmp_path / "said", *job) as said:
            until(lambda: "report: " in said())
            assert "not all of the workers could be placed: at most 1 from here on" in said()
    assert len(losses_of(run)) == 30
    assert json.loads((run / "report.json").read_text())["workers"] == 1
