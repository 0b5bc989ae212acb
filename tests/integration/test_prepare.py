"""Prepare in processes of its own: killed midway, interrupted, racing another, and on datasets as published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.config_reading import config_from_dict
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import load_dataset, prepare
from distgnn.types import UserError

SCRIPT = """
import signal, sys
from distgnn.config_reading import load_config
from distgnn.partition.prepare import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored, as in a shell's background
print("ready", flush=True)
sys.stdin.readline()
dataset = prepare(load_config(None, sys.argv[1:]), log=lambda line: print(line, flush=True))
print("path", dataset.path, dataset.content_hash, flush=True)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Large enough that a prepare can be caught in the act."""
    rng = np.random.default_rng(0)
    n = 600_000
    table = pa.table({"user": rng.integers(0, 40_000, n), "item": rng.integers(0, 9_000, n)})
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(table, path)
    return str(path)


def start(cache: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *overrides],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "DISTGNN_CACHE": str(cache), **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def staged_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".out.partial-*/**/*") if path.is_file()]


def wait_for(folder: Path, file: str, process: subprocess.Popen[str]) -> None:
    """Wait until a prepare has begun to write a file."""
    deadline = time.monotonic() + 60
    while not any(path.match(file) for path in staged_files(folder)):
        assert process.poll() is None, "prepare ended before it could be caught"
        assert time.monotonic() < deadline
        time.sleep(0.001)


MOMENTS = [
    "edges/train.parquet",
    pytest.param("users.parquet", marks=pytest.mark.slow),
    pytest.param("metis-4/offsets.npy", marks=pytest.mark.slow),
    pytest.param("full/part-0001/*", marks=pytest.mark.slow),
    "fit/part-0000/*",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_prepare_leaves_no_readable_dataset(tmp_path: Path, log: str, moment: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    options = [f"data.input={log}", f"run.out={work / 'out'}", "partition.parts=4"]
    process = start(tmp_path / "cache", *options)
    go(process)
    wait_for(work, moment, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (work / "out").exists()
    for folder in [work / "out", *work.glob(".out.partial-*")]:
        with pytest.raises(UserError, match="no prepared dataset there"):
            PreparedDataset.open(str(folder))
    again = start(tmp_path / "cache", *options)
    assert "path " in again.communicate("\n")[0]
    assert os.listdir(work) == ["out"]
    PreparedDataset.open(str(work / "out"))


def test_an_interrupted_prepare_cleans_up(tmp_path: Path, log: str) -> None:
    process = start(tmp_path / "cache", f"data.input={log}", f"run.out={tmp_path / 'out'}", "partition.parts=4")
    go(process)
    wait_for(tmp_path, "edges/train.parquet", process)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert not list(tmp_path.glob("*out*"))


def test_two_at_once_share_one_dataset(tmp_path: Path, log: str) -> None:
    cache = tmp_path / "cache"
    processes = [start(cache, f"data.input={log}", "partition.method=random", "partition.parts=3") for _ in range(2)]
    for process in processes:
        go(process)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    (folder,) = (cache / "prepared").iterdir()
    PreparedDataset.open(str(folder))


def test_two_processes_write_the_same_bytes(tmp_path: Path, log: str) -> None:
    manifests = []
    for name, seed in (("a", "1"), ("b", "2")):
        options = [f"data.input={log}", f"run.out={tmp_path / name}", "partition.parts=4"]
        process = start(tmp_path, *options, PYTHONHASHSEED=seed)
        process.communicate("\n")
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text()))
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("name", ["gowalla", "lastfm-hetrec", "ml-100k", "adressa", "amazon-musical", "mind-subset"])
def test_published_datasets_as_their_cards_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("DISTGNN_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"DISTGNN_DATA has no {name}")
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path))
    card = json.loads((Path(root) / name / "dataset.json").read_text())
    dataset = load_dataset(name, lambda line: None, partition={"parts": 4})
    counts = [dataset.n_users, dataset.n_items, dataset.n_train, dataset.n_test]
    assert counts == [card[key] for key in ("n_users", "n_items", "n_train", "n_test")]
    if "n_valid" in card:
        assert dataset.n_valid == card["n_valid"]
    health, checks = dataset.manifest["health"], card["checks"]
    assert health["duplicates"] == checks["dup_train"] + checks["dup_test"]
    assert health["test_users_unseen"] == checks["test_users_without_train"]
    assert health["test_items_unseen"] == checks["test_items_without_train"]
    assert len(np.unique(dataset.edges("test")[0])) == checks["test_users"]


def test_gowalla_is_cut_as_well_as_metis_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.environ.get("DISTGNN_DATA"):
        pytest.skip("DISTGNN_DATA is not set: gowalla is not bundled")
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path))
    measured = {}
    for balance in ("nodes", "edges", "both"):
        settings = config_from_dict({"data": {"name": "gowalla"}, "partition": {"parts": 8, "balance": balance}})
        measured[balance] = prepare(settings, lambda line: None).manifest["partitions"]["metis-8"]
    for facts in measured.values():
        assert 0.15 < facts["cut"] < 0.23  # random: 7 / 8
        assert 1.0 < facts["halo"] < 1.5
    assert measured["nodes"]["node_balance"] < 1.05
    assert measured["edges"]["edge_balance"] < 1.05
    for kind in ("node_balance", "edge_balance"):
        assert measured["both"][kind] < max(measured["nodes"][kind], measured["edges"][kind])
