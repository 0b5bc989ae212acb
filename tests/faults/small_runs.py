"""A small dataset, the command line on it, and a run that nothing disturbs: what faults of storage are held to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.training.checkpoint import list_checkpoints
from tests.faults.harness import MarkedRun, curve_difference, damaged_checkpoints

LIMIT_SECONDS = 150.0
STEPS, EVERY = 12, 4
OPTIONS = {
    "partition.parts": "2",
    "train.batch_size": "64",
    "train.max_steps": str(STEPS),
    "train.checkpoint_every": str(EVERY),
    "train.keep_checkpoints": "9",
    "train.log_every": "1",
    "sampler.fanout": "4,3",
    "model.dim": "8",
    "model.encoder": "graphsage",
    "run.tensorboard": "false",
    "cluster.workers": "2",
    "cluster.threads_per_worker": "1",
    "cluster.timeout_seconds": "60",
}
CLI, WITH_A_FAULT = "distgnn", "tests.faults.faulty_worker"


def write_log(path: Path) -> None:
    """1,300 edges or so of 80 users and 50 items."""
    key = np.unique(np.random.default_rng(0).integers(0, 80 * 50, 1500))
    pq.write_table(pa.table({"user": key // 50, "item": key % 50}), path)


class SmallRuns:
    """Runs of a command in a folder with a log and a dataset.

    Args:
        folder: of the log, `log.parquet`, and the dataset, `dataset`. work: of the runs and the cache.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.log, self.dataset, self.work = folder / "log.parquet", folder / "dataset", work
        self.run = work / "run"

    def start(
        self, command: str, *words: str, module: str = CLI, environment: dict[str, str] | None = None, **options: str
    ) -> MarkedRun:
        """Start a command; `options` with `__` for the dot are set besides OPTIONS, where it is `train`."""
        chosen = {**OPTIONS, **{key.replace("__", "."): value for key, value in options.items()}}
        flags = [f"--set={key}={value}" for key, value in chosen.items()] if command == "train" else []
        own = {
            "DISTGNN_CACHE": str(self.work / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "cache" / "torch"),  # else an empty folder among temporary files
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        return MarkedRun([sys.executable, "-m", module, command, *words, *flags], self.work / "watched", own)

    def train(
        self, *words: str, module: str = CLI, environment: dict[str, str] | None = None, **options: str
    ) -> MarkedRun:
        """Start training on the dataset into `run`."""
        data = ("--data", str(self.dataset), "--out", str(self.run))
        return self.start("train", *data, *words, module=module, environment=environment, **options)


def end_well(run: MarkedRun) -> str:
    """The run ends with exit code 0, and leaves nothing; what it has said."""
    assert run.wait(LIMIT_SECONDS) == 0, run.output
    left = run.left()
    assert not left, left
    return run.output


def end_in_words(run: MarkedRun, code: int, *words: str) -> str:
    """The run ends with this exit code and one line that has these words, and leaves nothing; the line."""
    got, output = run.wait(LIMIT_SECONDS), run.output
    assert got == code, output
    assert "Traceback" not in output, output
    mine = [line for line in output.splitlines() if line.startswith("distgnn: ")]
    assert len(mine) == 1, output
    for word in words:
        assert word in mine[0], mine[0]
    left = run.left()
    assert not left, left
    return mine[0]


def goes_on(runs: SmallRuns, undisturbed: Path, **options: str) -> str:
    """The run, resumed without the fault, comes to the undisturbed curve; what it has said."""
    assert damaged_checkpoints(runs.run) == []
    said = end_well(runs.train("--resume", **options))
    assert curve_difference(runs.run, undisturbed) == ""
    assert hidden(runs.work) == []
    return said


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of its checkpoints that are whole by their manifests."""
    return [info.step for info in list_checkpoints(str(run))]


def hidden(folder: Path) -> list[str]:
    """Files and folders that are never seen where all went well: unfinished and temporary ones."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if name.startswith(".") or name == "unfinished"]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log and the dataset."""
    folder = tmp_path_factory.mktemp("data")
    write_log(folder / "log.parquet")
    runs = SmallRuns(folder, tmp_path_factory.mktemp("prepare"))
    out = ("--input", str(runs.log), "--parts", "2", "--out", str(runs.dataset))
    end_well(runs.start("prepare", *out))
    return folder


@pytest.fixture(scope="session")
def undisturbed(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    runs = SmallRuns(small_data, tmp_path_factory.mktemp("undisturbed"))
    end_well(runs.train())
    return runs.run


@pytest.fixture
def runs(small_data: Path, tmp_path: Path) -> SmallRuns:
    return SmallRuns(small_data, tmp_path)


@pytest.fixture
def own_dataset(runs: SmallRuns, tmp_path: Path) -> Path:
    """The dataset as a copy to spoil, which `runs` uses."""
    runs.dataset = Path(shutil.copytree(runs.dataset, tmp_path / "dataset"))
    return runs.dataset


def in_worker(rank: int, step: int, what: str) -> dict[str, Any]:
    """Arguments of `train` for a fault of `faulty_worker` in a worker, before a step (counted from 1)."""
    return {
        "module": WITH_A_FAULT,
        "environment": {"FAULT_RANK": str(rank), "FAULT_STEP": str(step), "FAULT_DO": what},
    }


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`faults.c`, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("library") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


def preloaded(library: Path, **faults: str) -> dict[str, str]:
    """Environment of a process with `faults.c` in it."""
    before = os.environ.get("LD_PRELOAD", "")
    return {"LD_PRELOAD": f"{library} {before}".strip(), **{f"FAULT_{k.upper()}": v for k, v in faults.items()}}
