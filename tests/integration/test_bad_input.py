"""Every mistake, through the real command line: exit code 2, one line on stderr, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distgnn  # it says where compiled kernels are kept; the commands here share them

assert distgnn.__version__
VALID = ["--set", "evaluate.split=valid"]
TINY = ["--set", "model.dim=8", "--set", "train.max_steps=2", "--set", "run.tensorboard=false"]


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder; its cache is `<folder>-cache`."""
    return subprocess.run(
        [sys.executable, "-m", "distgnn", *arguments],
        cwd=folder,
        env={**os.environ, "DISTGNN_CACHE": f"{folder}-cache"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def snapshot(*folders: Path) -> dict[str, str]:
    """Every path below the folders with its content's hash."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in folder.rglob("*")
    }


def refused(folder: Path, arguments: list[str], *words: str) -> None:
    """The command is refused with these words, and changes nothing."""
    cache = Path(f"{folder}-cache")
    before = snapshot(folder, cache)
    result = command(folder, *arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    mine = [line for line in lines if line.startswith("distgnn: ")]
    assert len(mine) == 1, result.stderr
    assert lines == mine, result.stderr
    for word in words:
        assert word in mine[0]
    # The cache may keep what is finished (compiled kernels, a prepared dataset), nothing that was begun.
    after = snapshot(folder, cache)
    begun = {path for path in set(after) - set(before) if not path.startswith(str(cache)) or ".partial" in path}
    assert begun == set()
    assert {path: after.get(path) for path in before} == before


def write_log(path: Path, n_users: int = 60, n_items: int = 40, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    user, item = (rng.random((n_users, n_items)) < 0.25).nonzero()
    pq.write_table(pa.table({"user": user, "item": item, "time": np.arange(len(user))}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a sound log, and an empty cache."""
    work = tmp_path / "work"
    work.mkdir()
    Path(f"{work}-cache").mkdir()
    write_log(work / "log.parquet")
    return work


LOGS = {
    "missing column": ("who,item\na,x\n", [], ["log.csv", "'user'", "who", "item"]),
    "non-numeric timestamp": (
        "user,item,when\na,x,1\na,y,noon\nb,x,2\n",
        ["--timestamp-column", "when"],
        ["log.csv", "row 2", "noon"],
    ),
    "empty file": ("", [], ["log.csv", "empty"]),
    "header alone": ("user,item\n", [], ["log.csv", "empty"]),
    "one user only": ("user,item\na,x\na,y\na,z\n", [], ["log.csv", "one user"]),
    "null user": ("user,item\na,x\n,y\n", [], ["log.csv", "row 2", "user"]),
    "null item": ("user,item\na,x\nb,\n", [], ["log.csv", "row 2", "item"]),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_log_that_cannot_be_used(folder: Path, case: str) -> None:
    text, flags, words = LOGS[case]
    (folder / "log.csv").write_text(text)
    refused(folder, ["prepare", "--input", "log.csv", "--out", "dataset", *flags], *words)


def test_null_in_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"user": [1, None, 2], "item": [1, 2, 3]}), folder / "null.parquet")
    refused(folder, ["prepare", "--input", "null.parquet", "--out", "dataset"], "null.parquet", "row 2", "user")


def test_corrupt_parquet(folder: Path) -> None:
    content = (folder / "log.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    refused(folder, ["train", "--input", "cut.parquet", "--out", "run"], "cut.parquet")
    middle = bytearray(content)
    middle[4:400] = bytes(396)
    (folder / "overwritten.parquet").write_bytes(middle)
    refused(folder, ["prepare", "--input", "overwritten.parquet", "--out", "dataset"], "overwritten.parquet")


COMMANDS = {
    "no such log": (["prepare", "--input", "nowhere.csv", "--out", "dataset"], ["nowhere.csv"]),
    "unknown key": (["train", "--set", "train.epoch=3"], ["train.epoch", "did you mean epochs"]),
    "unknown dataset": (["train", "--name", "gowala", "--out", "run"], ["gowala", "gowalla"]),
    "more partitions than nodes": (
        ["prepare", "--input", "log.parquet", "--parts", "101", "--out", "dataset"],
        ["partition.parts = 101", "100"],
    ),
    "more workers than partitions": (
        ["train", "--input", "log.parquet", "--workers", "3", "--set", "partition.parts=2", "--out", "run"],
        ["cluster.workers = 3", "partition.parts = 2"],
    ),
    "no such dataset folder": (["train", "--data", "nowhere", "--out", "run"], ["nowhere"]),
    "no such run": (["evaluate", "--run", "nowhere"], ["nowhere", "config.toml"]),
    "nothing to evaluate": (["evaluate", "--name", "debian-deps"], ["run.path", "baselines"]),
    "prepare in a folder in use": (["prepare", "--input", "log.parquet", "--out", "."], ["in use", "run.out"]),
    "train in a folder in use": (["train", "--input", "log.parquet", "--out", "."], ["in use", "run.out"]),
    "baselines in a folder in use": (
        ["evaluate", "--name", "debian-deps", "--baselines", "toppop", "--out", "."],
        ["in use", "run.out"],
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_cannot_be_carried_out(folder: Path, case: str) -> None:
    arguments, words = COMMANDS[case]
    refused(folder, arguments, *words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in two partitions, and a run on it."""
    work = tmp_path_factory.mktemp("trained") / "work"
    work.mkdir()
    write_log(work / "log.parquet")
    write_log(work / "other.parquet", seed=1)
    for arguments in (
        ["prepare", "--input", "log.parquet", "--parts", "2", "--out", "dataset"],
        ["train", "--data", "dataset", "--set", "partition.parts=2", "--out", "run", *TINY],
    ):
        result = command(work, *arguments)
        assert result.returncode == 0, result.stderr
    return work


@pytest.fixture
def sound(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    work = tmp_path / "work"
    shutil.copytree(trained, work)
    run = json.loads((work / "run" / "dataset.json").read_text())
    run["path"] = str(work / "dataset")
    (work / "run" / "dataset.json").write_text(json.dumps(run))
    Path(f"{work}-cache").mkdir()
    return work


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


PART = "partitions/metis-2/fit/part-0001/indices.npy"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_altered_partition_file(sound: Path, workers: str) -> None:
    altered(sound / "dataset" / PART)
    arguments = ["train", "--data", "dataset", "--workers", workers, "--set", "partition.parts=2", "--out", "again"]
    refused(sound, [*arguments, *TINY], PART, "altered")


def test_missing_and_truncated_partition_file(sound: Path) -> None:
    (sound / "dataset" / PART).rename(sound / "kept.npy")
    refused(sound, ["evaluate", "--run", "run"], PART, "missing")
    (sound / "dataset" / PART).write_bytes((sound / "kept.npy").read_bytes()[:-8])
    refused(sound, ["evaluate", "--run", "run"], PART, "truncated")


def test_partitions_that_are_not_there(sound: Path) -> None:
    refused(sound, ["train", "--data", "dataset", "--workers", "3", "--out", "again", *TINY], "metis-2", "prepare")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_checkpoint_of_another_dataset(sound: Path, workers: str) -> None:
    arguments = ["train", "--input", "other.parquet", "--set", "partition.parts=2", "--workers", workers]
    refused(sound, [*arguments, "--out", "run", "--resume", *TINY], "another dataset")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_altered_checkpoint(sound: Path, workers: str) -> None:
    for shard in sound.glob("run/checkpoints/*/shard-0000.safetensors"):
        altered(shard)
    refused(
        sound, ["evaluate", "--run", "run", "--workers", workers, "--out", "figures", *VALID], "shard-0000", "altered"
    )


def test_no_space_left(folder: Path) -> None:
    """A file system of 3 MiB: room for a start, not for the whole."""
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        refused(folder, ["prepare", "--name", "debian-deps", "--out", "small/dataset"], "small", "free")
        result = command(folder, "train", "--name", "debian-deps", "--out", "small/run", *TINY)
        assert result.returncode == 2
        last = result.stderr.splitlines()[-1]  # after the progress of a run that had begun
        assert last.startswith("distgnn: small/run/")
        assert "No space left" in last
        assert not [p for p in small.rglob("*") if p.name in ("report.json", "manifest.json")]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_run_knows_its_dataset_from_any_folder(trained: Path, tmp_path: Path) -> None:
    result = command(tmp_path, "evaluate", "--run", str(trained / "run"), "--out", "figures", *VALID)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figures" / "report.json").is_file()
