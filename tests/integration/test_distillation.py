"""Distillation of a small teacher, whole: same on any number of workers, honest rows, an export that serves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distgnn
from distgnn import cli
from distgnn.config_reading import load_config
from distgnn.distillation.launch import run_distillation
from distgnn.distillation.run import COMPARED
from distgnn.export.reader import Export, read_export
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.checkpoint import list_checkpoints
from distgnn.training.launch import run_training
from distgnn.types import WorkerError
from tests.integration.test_workers import workers

N_USERS, N_ITEMS, N_CLUSTERS = 300, 120, 12
TEACHER_DIM, DIM = 24, 6
TEACHER = [
    "partition.parts=2",
    "sampler.fanout=8,4",
    f"model.dim={TEACHER_DIM}",
    "train.epochs=8",
    "train.log_every=10",
    "run.tensorboard=false",
    "optim.lr=0.02",
]
STUDENT = [
    f"distill.dim={DIM}",
    "distill.label_weight=0.1",
    "distill.top=40",
    "distill.listed=16",
    "distill.negatives=64",
]
Command = Callable[..., tuple[int, str]]


def write_log(path: Path, seed: int = 0, n_users: int = N_USERS) -> Path:
    """Users of clusters, each with most interactions among its cluster's ten items and some anywhere."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), 14)
    own = (user % N_CLUSTERS) * (N_ITEMS // N_CLUSTERS) + rng.integers(0, N_ITEMS // N_CLUSTERS, len(user))
    item = np.where(rng.random(len(user)) < 0.7, own, rng.integers(0, N_ITEMS, len(user)))
    key = np.unique(user * N_ITEMS + item)
    pq.write_table(pa.table({"user": 7 * (key // N_ITEMS), "item": key % N_ITEMS}), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds the log and the runs of this module, with a cache of its own."""
    folder = tmp_path_factory.mktemp("distillation")
    write_log(folder / "log.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTGNN_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Path:
    run_training(load_config(None, [f"data.input={folder}/log.parquet", f"run.out={folder}/teacher", *TEACHER]))
    return folder / "teacher"


@pytest.fixture(scope="module")
def student(folder: Path, teacher: Path) -> Path:
    """Of one worker, through the command line."""
    options = [word for option in STUDENT for word in ("--set", option)]
    assert cli.main(["distill", "--run", str(teacher), "--out", str(folder / "student"), *options]) == 0
    return folder / "student"


def distill(teacher: Path, run: Path, *overrides: str) -> dict[str, Any]:
    return run_distillation(load_config(None, [f"run.path={teacher}", f"run.out={run}", *STUDENT, *overrides]))


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path) -> dict[int, float]:
    """Loss by step; every step is there once."""
    found = [(r["step"], r["loss"]) for r in records(run)]
    assert len(found) == len(dict(found))
    return dict(found)


def rows_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in report["models"]}


def test_two_workers_train_the_student_of_one(teacher: Path, student: Path, tmp_path: Path) -> None:
    report = distill(teacher, tmp_path / "two", "cluster.workers=2")
    assert report["workers"] == 2
    one, two = curve(student), curve(tmp_path / "two")
    assert len(one) > 12
    assert two == pytest.approx(one, rel=1e-6)
    losses = list(one.values())
    assert (
        np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.01
    )  # the teacher's entropy, which no student gets below, is most
    for name, row in rows_of(report_of(student)).items():
        found = {key: rows_of(report)[name][key] for key in row if key != "latency_ms"}
        assert found == pytest.approx({key: row[key] for key in found}, abs=0.001), name


def test_a_row_for_each_model_and_its_bytes(student: Path) -> None:
    report = report_of(student)
    rows = rows_of(report)
    assert tuple(rows) == COMPARED
    widths = {
        "teacher": 4 * TEACHER_DIM,
        "teacher-int8": TEACHER_DIM + 2,
        "pca-int8": DIM + 2,
        "svd-int8": DIM + 2,
        "student": 4 * DIM,
        "student-int8": DIM + 2,
    }
    for name, width in widths.items():
        row = rows[name]
        assert row["row_bytes"] == width, name
        assert (row["user_bytes"], row["item_bytes"]) == (N_USERS * width, N_ITEMS * width)
        assert row["bytes"] == row["user_bytes"] + row["item_bytes"]
        assert row["latency_ms"] > 0
    assert report["metrics"] == {key: rows["student-int8"][key] for key in report["metrics"]}
    for run, name in ((student, "student-int8"), (student / "embeddings-float32", "student")):
        export = read_export(str(run))
        assert export.users.nbytes + export.items.nbytes == rows[name]["bytes"]


def test_the_teachers_row_is_the_teachers_own_figure(teacher: Path, student: Path) -> None:
    own = report_of_training(teacher)
    row = rows_of(report_of(student))["teacher"]
    assert {key: row[key] for key in own} == pytest.approx(own, abs=1e-6)


def report_of_training(teacher: Path) -> dict[str, float]:
    """Metrics of a run by `distgnn evaluate`."""
    assert cli.main(["evaluate", "--run", str(teacher)]) == 0
    found: dict[str, float] = report_of(teacher / "evaluation-test")["metrics"]
    return found


@pytest.mark.parametrize("label_weight", [0.1, 0.0])
def test_the_student_beats_closed_form_tables_of_its_size(
    teacher: Path, student: Path, tmp_path: Path, label_weight: float
) -> None:
    """Also without labels: by the teacher's ranking alone."""
    report = report_of(student) if label_weight else distill(teacher, tmp_path / "s", "distill.label_weight=0")
    rows = rows_of(report)
    assert rows["student-int8"]["ndcg@20"] > rows["pca-int8"]["ndcg@20"] + 0.01
    assert rows["student-int8"]["ndcg@20"] > rows["svd-int8"]["ndcg@20"] + 0.01


def test_the_exported_tables_give_the_lists_that_were_judged(student: Path) -> None:
    recommender, export = distgnn.Recommender.load(str(student)), read_export(str(student))
    assert export.users.values.dtype == np.int8
    wanted = held_out(student, export)
    ndcg = []
    for user, found in zip(wanted, recommender.recommend_many(list(wanted), 20), strict=True):
        hits = [p for p, (item, _) in enumerate(found) if item in wanted[user]]
        best = sum(1 / np.log2(p + 2) for p in range(min(20, len(wanted[user]))))
        ndcg.append(sum(1 / np.log2(p + 2) for p in hits) / best)
    report = report_of(student)
    assert len(ndcg) == report["n_evaluated"]
    assert np.mean(ndcg) == pytest.approx(report["metrics"]["ndcg@20"], abs=1e-6)


def held_out(run: Path, export: Export) -> dict[Any, set[Any]]:
    """The log's own keys of test items by user."""
    dataset = PreparedDataset.open(json.loads((run / "dataset.json").read_text())["path"])
    users, items = export.user_keys.to_pylist(), export.item_keys.to_pylist()
    wanted: dict[Any, set[Any]] = {}
    for u, i in zip(*dataset.edges("test"), strict=True):
        wanted.setdefault(users[u], set()).add(items[i])
    return wanted


@pytest.mark.parametrize("n_workers", ["1", "2"])
def test_evaluating_the_student_repeats_the_figure(student: Path, tmp_path: Path, n_workers: str) -> None:
    out = tmp_path / "again"
    assert cli.main(["evaluate", "--run", str(student), "--out", str(out), "--workers", n_workers]) == 0
    again = report_of(out)
    assert again["model"] == "student-int8"
    assert again["metrics"] == pytest.approx(report_of(student)["metrics"], abs=1e-9)


class Killer(threading.Thread):
    """Kills one worker as soon as the run has a checkpoint."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.run_path = run

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(self.run_path.glob("checkpoints/*/manifest.json")):
                os.kill(workers()[1].pid, signal.SIGKILL)
                return
            time.sleep(0.002)


@pytest.mark.slow
def test_a_killed_distillation_goes_on_to_the_same_student(teacher: Path, tmp_path: Path) -> None:
    options = ("distill.epochs=10", "cluster.workers=2")
    whole = distill(teacher, tmp_path / "whole", *options)
    cut = tmp_path / "cut"
    killer = Killer(cut)
    killer.start()
    with pytest.raises(WorkerError, match="worker 1 was killed"):
        distill(teacher, cut, *options)
    killer.join()
    (info,) = list_checkpoints(str(cut))
    last = max(curve(tmp_path / "whole"))
    assert 0 < info.step < last
    assert not (cut / "embeddings").exists()
    before = {r["step"]: r["seconds"] for r in records(cut) if r["step"] <= info.step}
    with (cut / "metrics.jsonl").open("a") as file:  # of steps after the checkpoint, the last one half-written
        file.write(json.dumps({"phase": "student", "step": info.step + 1, "loss": 9.0, "seconds": 9.0}) + "\n")
        file.write('{"phase": "student", "st')
    resumed = distill(teacher, cut, *options, "run.resume=true")
    assert curve(cut) == pytest.approx(curve(tmp_path / "whole"), rel=1e-6)
    assert {r["step"]: r["seconds"] for r in records(cut) if r["step"] <= info.step} == before  # not trained again
    assert resumed["metrics"] == pytest.approx(whole["metrics"], abs=0.001)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Exit code and stderr of the command line."""

    def call(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.main(list(arguments))
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def refused(command: Command) -> Callable[..., None]:
    """The command is refused in one line with these words, and no file of a folder has changed."""

    def check(folder: Path, arguments: list[str], *words: str) -> None:
        before = snapshot(folder)
        code, stderr = command(*arguments)
        assert code == 2, stderr
        (line,) = stderr.splitlines()
        assert line.startswith("distgnn: ")
        for word in words:
            assert word in line
        assert snapshot(folder) == before

    return check


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder with its content's hash."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def test_a_run_that_is_none_or_not_trained_is_refused(
    teacher: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(tmp_path, ["distill", "--run", str(tmp_path / "nothing")], "no config.toml there")
    refused(tmp_path, ["distill"], "no config.toml there")
    shutil.copytree(teacher, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "embeddings")
    refused(tmp_path, ["distill", "--run", str(tmp_path / "stopped")], "no trained teacher", "--resume")


def test_a_student_is_no_teacher(student: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(student, ["distill", "--run", str(student), "--out", str(tmp_path / "s")], "is a student itself")
    assert not (tmp_path / "s").exists()


def test_an_output_in_use_is_refused(teacher: Path, student: Path, refused: Callable[..., None]) -> None:
    refused(student, ["distill", "--run", str(teacher), "--out", str(student)], "in use")
    refused(teacher, ["distill", "--run", str(teacher), "--out", str(teacher)], "in use")


@pytest.mark.parametrize("n_workers", ["1", "2"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"distill.dim={TEACHER_DIM + 1}", ["distill.dim = 25", "the teacher's width 24"]),
        ("distill.listed=101", ["distill.listed = 101 is more than distill.top = 100"]),
    ],
)
def test_options_that_cannot_be_are_refused(
    teacher: Path, tmp_path: Path, refused: Callable[..., None], n_workers: str, override: str, words: list[str]
) -> None:
    arguments = ["--run", str(teacher), "--out", str(tmp_path / "s"), "--workers", n_workers, "--set", override]
    refused(tmp_path, ["distill", *arguments], *words)


def test_a_split_that_the_teacher_was_trained_on_is_refused(
    student: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    arguments = ["--run", str(student), "--out", str(tmp_path / "e"), "--set", "evaluate.split=valid"]
    refused(tmp_path, ["evaluate", *arguments], "trained on the full graph", "evaluate.split = test")


def test_another_dataset_in_the_place_of_the_runs_own_is_refused(
    tmp_path: Path, command: Command, refused: Callable[..., None]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for seed in (1, 2):
        write_log(tmp_path / "log.parquet", seed, 60)
        shutil.rmtree(data, ignore_errors=True)
        assert command("prepare", "--input", f"{tmp_path}/log.parquet", "--out", str(data))[0] == 0
        if seed == 1:
            small = ["--set", "train.max_steps=2", "--set", "model.dim=8", "--set", "run.tensorboard=false"]
            assert command("train", "--data", str(data), "--out", str(run), *small)[0] == 0
    refused(tmp_path, ["distill", "--run", str(run)], "is not the dataset that the run was trained on")


def test_going_on_with_what_is_not_the_same_distillation_is_refused(
    folder: Path, teacher: Path, student: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    options = [word for option in STUDENT for word in ("--set", option)]
    on = ["distill", "--resume", "--run", str(teacher), "--out"]
    begun = tmp_path / "begun"
    shutil.copytree(student, begun)
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "student", "step": 9')  # a line that was being written
    refused(begun, [*on, str(begun), *options, "--set", "distill.lr=0.1"], "was distilled with distill.lr = 0.005")
    refused(teacher, [*on, str(teacher), *options], "is a teacher's run")
    train = [word for option in TEACHER for word in ("--set", option)]
    arguments = ["train", "--input", f"{folder}/log.parquet", "--out", str(student), "--resume", *train]
    refused(student, arguments, "is a student's run")
    other = tmp_path / "other"
    run_training(
        load_config(None, [f"data.input={folder}/log.parquet", f"run.out={other}", *TEACHER, "train.max_steps=3"])
    )
    refused(
        student,
        ["distill", "--resume", "--run", str(other), "--out", str(student), *options],
        "from the vectors of another teacher",
    )
