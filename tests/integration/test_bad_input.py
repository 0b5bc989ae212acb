"""Every mistake, through the real command line: exit code 2, one line on stderr, nothing half-written.

Most run `distgnn.cli.main` here, a few the whole process; with two workers the workers are processes in either case.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distgnn import cli, storage

VALID = ["--set", "evaluate.split=valid"]
TINY = ["--set", "model.dim=8", "--set", "train.max_steps=2", "--set", "run.tensorboard=false"]
TWO_PARTS = ["--set", "partition.parts=2"]
Run = Callable[..., tuple[int, str]]
Refused = Callable[..., None]


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in a folder; its cache is `<folder>-cache`."""
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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit code and stderr of the command line, run in a folder; `process`: in a process of its own."""

    def call(folder: Path, *arguments: str, process: bool = False) -> tuple[int, str]:
        if process:
            result = command(folder, *arguments)
            return result.returncode, result.stderr
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DISTGNN_CACHE", f"{folder}-cache")
        capfd.readouterr()
        code = cli.main(arguments)
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def refused(run: Run) -> Refused:
    """The command is refused with these words, and changes nothing.

    `process`: in a process of its own. `started`: lines of progress go before. `prepared`: a dataset may stay in the
    cache, since the mistake can only be seen after.
    """

    def check(
        folder: Path,
        arguments: list[str],
        *words: str,
        process: bool = False,
        started: bool = False,
        prepared: bool = False,
    ) -> None:
        cache = Path(f"{folder}-cache")
        before = snapshot(folder, cache)
        code, stderr = run(folder, *arguments, process=process)
        assert code == 2, stderr
        lines = stderr.splitlines()
        mine = [line for line in lines if line.startswith("distgnn: ")]
        assert len(mine) == 1, stderr
        assert lines[-1:] == mine, stderr
        assert started or lines == mine, stderr
        assert "Traceback" not in stderr
        for word in words:
            assert word in mine[0]
        after = snapshot(folder, cache)
        begun = {
            path for path in set(after) - set(before) if path.startswith(str(folder) + os.sep) or ".partial" in path
        }
        assert begun == set()
        assert {path: after.get(path) for path in before} == before
        assert prepared or not (cache / "prepared").exists()

    return check


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
def test_a_log_that_cannot_be_used(folder: Path, refused: Refused, case: str) -> None:
    text, flags, words = LOGS[case]
    (folder / "log.csv").write_text(text)
    arguments = ["prepare", "--input", "log.csv", "--out", "dataset", *flags]
    refused(folder, arguments, *words, process=case == "missing column")


def test_null_in_parquet(folder: Path, refused: Refused) -> None:
    pq.write_table(pa.table({"user": [1, None, 2], "item": [1, 2, 3]}), folder / "null.parquet")
    refused(folder, ["prepare", "--input", "null.parquet", "--out", "dataset"], "null.parquet", "row 2", "user")


def test_corrupt_parquet(folder: Path, refused: Refused) -> None:
    content = (folder / "log.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    refused(folder, ["train", "--input", "cut.parquet", "--out", "run"], "cut.parquet", process=True)
    middle = bytearray(content)
    middle[4:400] = bytes(396)
    (folder / "overwritten.parquet").write_bytes(middle)
    refused(folder, ["prepare", "--input", "overwritten.parquet", "--out", "dataset"], "overwritten.parquet")


FEATURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no key column": ({"key": [1, 2], "x": [0.5, 1.5]}, ["no column 'item'", "'key', 'x'"]),
    "text": ({"item": [1, 2], "title": ["a", "b"]}, ["column 'title'", "string", "drop the column"]),
    "a key twice": ({"item": [1, 2, 1], "x": [1, 2, 3]}, ["row 3", "column 'item'", "one row"]),
    "NaN": ({"item": [1, 2], "x": [1.0, float("nan")]}, ["row 2", "column 'x'", "not finite"]),
    "null": ({"item": [1, 2], "x": [None, 1.0]}, ["row 1", "column 'x'", "null"]),
    "lists of two lengths": ({"item": [1, 2], "v": [[1.0], [1.0, 2.0]]}, ["row 2", "column 'v'", "one length"]),
    "keys of another kind": ({"item": ["1", "2"], "x": [1, 2]}, ["column 'item'", "write them alike"]),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_that_cannot_be_used(folder: Path, refused: Refused, case: str) -> None:
    columns, words = FEATURES[case]
    pq.write_table(pa.table(columns), folder / "items.parquet")
    arguments = ["prepare", "--input", "log.parquet", "--item-features", "items.parquet", "--out", "dataset"]
    refused(folder, arguments, "items.parquet", *words)
    if case in ("no key column", "text"):
        arguments = ["train", "--input", "log.parquet", "--item-features", "items.parquet", "--out", "run"]
        refused(folder, arguments, "items.parquet", *words, process=case == "text")


COMMANDS = {
    "no such features": (
        ["train", "--input", "log.parquet", "--user-features", "nowhere.parquet", "--out", "run"],
        ["nowhere.parquet", "check the path"],
    ),
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
def test_a_command_that_cannot_be_carried_out(folder: Path, refused: Refused, case: str) -> None:
    arguments, words = COMMANDS[case]
    refused(folder, arguments, *words, process=case in ("unknown key", "train in a folder in use"))


CANNOT_START = {
    "no such layer": (["model.encoder=no.such.Layer"], ["no.such.Layer"]),
    "more than memory": (["model.dim=1000000000"], ["fit: needs up to", "model.dim"]),
    "more than memory, two workers": (["model.dim=1000000000", "cluster.workers=2"], ["fit: needs up to", "model.dim"]),
    "no GPU": (["cluster.use_gpu=true"], ["cluster.use_gpu"]),
}


@pytest.mark.parametrize("case", CANNOT_START)
def test_a_run_that_cannot_start_leaves_no_run_directory(folder: Path, refused: Refused, case: str) -> None:
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    overrides, words = CANNOT_START[case]
    arguments = [f"--set={override}" for override in ["run.tensorboard=false", *TWO_PARTS[1:], *overrides]]
    refused(folder, ["train", "--input", "log.parquet", "--out", "run", *arguments], *words, prepared=True)
    (folder / "mine").mkdir()  # an empty folder of the user's stays
    refused(folder, ["train", "--input", "log.parquet", "--out", "mine", *arguments], *words, prepared=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in two partitions, and a run on it."""
    work = tmp_path_factory.mktemp("trained") / "work"
    work.mkdir()
    write_log(work / "log.parquet")
    write_log(work / "other.parquet", seed=1)
    for arguments in (
        ["prepare", "--input", "log.parquet", "--parts", "2", "--out", "dataset"],
        ["prepare", "--input", "other.parquet", "--parts", "2", "--out", "other"],
        ["train", "--data", "dataset", *TWO_PARTS, "--out", "run", *TINY],
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
def test_altered_partition_file(sound: Path, refused: Refused, workers: str) -> None:
    altered(sound / "dataset" / PART)
    arguments = ["train", "--data", "dataset", "--workers", workers, *TWO_PARTS, "--out", "again"]
    refused(sound, [*arguments, *TINY], PART, "altered", process=workers == "2")


def test_missing_and_truncated_partition_file(sound: Path, refused: Refused) -> None:
    (sound / "dataset" / PART).rename(sound / "kept.npy")
    refused(sound, ["evaluate", "--run", "run"], PART, "missing")
    refused(sound, ["train", "--data", "dataset", *TWO_PARTS, "--out", "again", *TINY], PART, "missing")
    (sound / "dataset" / PART).write_bytes((sound / "kept.npy").read_bytes()[:-8])
    refused(sound, ["evaluate", "--run", "run"], PART, "truncated")


def test_partitions_that_are_not_there(sound: Path, refused: Refused) -> None:
    refused(sound, ["train", "--data", "dataset", "--workers", "3", "--out", "again", *TINY], "metis-2", "prepare")


def test_more_workers_than_the_run_has_partitions(sound: Path, refused: Refused) -> None:
    refused(sound, ["evaluate", "--run", "run", "--workers", "3"], "cluster.workers = 3", "partition.parts = 2")


def test_resuming_needs_a_run(sound: Path, refused: Refused) -> None:
    refused(sound, ["train", "--data", "dataset", *TWO_PARTS, "--resume", *TINY], "run.out")
    refused(sound, ["train", "--data", "dataset", *TWO_PARTS, "--resume", "--out", "other", *TINY], "in use")


def test_resuming_a_run_of_another_dataset(sound: Path, refused: Refused) -> None:
    refused(sound, ["train", "--data", "other", *TWO_PARTS, "--out", "run", "--resume", *TINY], "another dataset")


def test_resuming_a_run_with_another_model(sound: Path, refused: Refused) -> None:
    arguments = ["train", "--data", "dataset", *TWO_PARTS, "--out", "run", "--resume", *TINY]
    refused(sound, [*arguments, "--set", "model.dim=16"], "width 8", "model.dim = 16")


def test_features_for_a_dataset_without_any(sound: Path, refused: Refused, run: Run) -> None:
    pq.write_table(pa.table({"item": np.arange(40), "x": np.arange(40) % 7}), sound / "items.parquet")
    named = ["--item-features", "items.parquet"]
    arguments = ["train", "--data", "dataset", *TWO_PARTS, *named, "--out", "again", *TINY]
    refused(sound, arguments, "dataset: has no item features", "distgnn prepare", "run.out")
    code, stderr = run(sound, "prepare", "--set", "data.path=dataset", *TWO_PARTS, *named, "--out", "rich")
    assert code == 0, stderr
    code, stderr = run(sound, "train", "--data", "rich", *TWO_PARTS, "--out", "rich-run", *TINY)
    assert code == 0, stderr
    assert "features (values a row: item 1) are projected" in stderr
    refused(
        sound, ["train", "--data", "rich", *TWO_PARTS, *named, "--out", "again", *TINY], "has item features already"
    )


@pytest.mark.parametrize("parts", ["1", "3"])
def test_any_partitioning_of_the_same_data_resumes_a_run(sound: Path, run: Run, parts: str) -> None:
    arguments = ["train", "--input", "log.parquet", "--set", f"partition.parts={parts}", "--out", "run", "--resume"]
    code, stderr = run(sound, *arguments, *TINY, "--set", "train.max_steps=3")
    assert code == 0, stderr
    assert json.loads((sound / "run" / "report.json").read_text())["steps"] == {"fit": 3}


def test_evaluating_a_run_whose_dataset_was_replaced(sound: Path, refused: Refused) -> None:
    shutil.rmtree(sound / "dataset")
    refused(sound, ["evaluate", "--run", "run", *VALID], "dataset", "no prepared dataset")
    (sound / "other").rename(sound / "dataset")
    refused(sound, ["evaluate", "--run", "run", *VALID], "not the dataset that the run was trained on")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_checkpoint_of_another_dataset(sound: Path, refused: Refused, workers: str) -> None:
    """The run's own note is right; its checkpoint came from elsewhere. Found by the workers."""
    for file in sound.glob("run/checkpoints/*/manifest.json"):
        manifest = json.loads(file.read_text())
        manifest |= {"dataset": "elsewhere", "dataset_hash": "0" * 64}
        del manifest["sha256"]
        own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps({**manifest, "sha256": own}))
    words = ["another dataset", "elsewhere"]
    refused(sound, ["evaluate", "--run", "run", "--workers", workers, *VALID], *words, process=workers == "2")
    arguments = ["train", "--data", "dataset", "--workers", workers, *TWO_PARTS, "--out", "run", "--resume", *TINY]
    refused(sound, arguments, *words)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_altered_checkpoint(sound: Path, refused: Refused, workers: str) -> None:
    for shard in sound.glob("run/checkpoints/*/shard-0000.safetensors"):
        altered(shard)
    arguments = ["evaluate", "--run", "run", "--workers", workers, "--out", "figures", *VALID]
    refused(sound, arguments, "shard-0000", "altered")


@pytest.fixture
def small(sound: Path) -> Any:
    """Mounts a file system of so many KiB at `small`."""
    target = sound / "small"
    target.mkdir()

    def mount(kib: int) -> None:
        arguments = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(target)]
        if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a small file system")

    yield mount
    subprocess.run(["umount", str(target)], capture_output=True, check=False)


def test_no_space_left_for_a_dataset(sound: Path, refused: Refused, small: Callable[[int], None]) -> None:
    small(3 << 10)
    refused(sound, ["prepare", "--name", "debian-deps", "--out", "small/dataset"], "small", "free")


# In KiB: full at the event file, at metrics.jsonl, at the first shard, at its manifest.
@pytest.mark.parametrize(("kib", "workers"), [(8, "1"), (12, "1"), (20, "2"), (32, "1")])
def test_no_space_left_for_a_run(
    sound: Path, refused: Refused, small: Callable[[int], None], kib: int, workers: str
) -> None:
    small(kib)
    arguments = ["train", "--data", "dataset", "--workers", workers, *TWO_PARTS, "--out", "small/run"]
    options = ["--set", "model.dim=8", "--set", "train.max_steps=2"]
    refused(sound, [*arguments, *options], "small/run/", "No space left", started=True, process=kib == 32)


def test_no_space_left_after_a_checkpoint_keeps_it(sound: Path, run: Run, small: Callable[[int], None]) -> None:
    small(48)
    arguments = ["train", "--data", "dataset", *TWO_PARTS, "--out", "small/run", "--set", "model.dim=8"]
    code, stderr = run(sound, *arguments, "--set", "train.max_steps=4")
    assert code == 2
    assert "No space left" in stderr.splitlines()[-1]
    assert not list(sound.glob("small/**/report.json"))
    shutil.copytree(sound / "small" / "run", sound / "rescued")
    arguments[arguments.index("small/run")] = "rescued"
    code, stderr = run(sound, *arguments, "--set", "train.max_steps=4", "--resume")
    assert code == 0, stderr


@pytest.mark.parametrize("nth", [0, 1, 2, 4])
def test_no_space_left_at_any_file(sound: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The same where no file system can be mounted: writing the nth file of a run fails."""
    written = []
    replace = storage._replace

    def fail(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        replace(path, content)

    monkeypatch.setattr(storage, "_replace", fail)
    arguments = ["train", "--data", "dataset", *TWO_PARTS, "--out", "again", *TINY]
    refused(sound, arguments, "again/", "No space left", started=True)
    assert len(written) == nth + 1


def test_a_run_knows_its_dataset_from_any_folder(trained: Path, tmp_path: Path, run: Run) -> None:
    code, stderr = run(tmp_path, "evaluate", "--run", str(trained / "run"), "--out", "figures", *VALID)
    assert code == 0, stderr
    assert (tmp_path / "figures" / "report.json").is_file()
