"""What command line and jobs call: prepare, train, evaluate, distill, recommend, compare, datasets."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import numpy as np

from distgnn import publishing, storage
from distgnn.baselines.runner import run_baselines
from distgnn.comparison import METRIC_TOLERANCE, Comparison, compare_runs
from distgnn.config import Config
from distgnn.data.registry import format_datasets, list_datasets
from distgnn.distillation.compression import closed_form_tables
from distgnn.distillation.launch import run_distillation, run_student_evaluation, teacher_of
from distgnn.distillation.run import FLOAT_FOLDER
from distgnn.export.reader import read_export
from distgnn.export.table import Table
from distgnn.partition import prepare as preparation
from distgnn.partition.dataset import PreparedDataset
from distgnn.recommender.batch import write_recommendations
from distgnn.recommender.latency import request_latency
from distgnn.report import format_table, straggler_sentence, write_report
from distgnn.training.launch import Launcher, on_local_workers, open_run, run_evaluation, run_training
from distgnn.types import UserError

_COLUMNS = ["model", "recall@20", "ndcg@20", "recall@10", "ndcg@10", "hit@10", "mrr", "coverage@20"]


class Trainer:
    """Trains a config: `Trainer(config).fit()`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def fit(self) -> dict[str, Any]:
        """Train, evaluate and write the run directory; returns the report.

        Raises:
            UserError: a mistake in the input.
        """
        return run_training(self.config, _launcher(self.config))


def _refuse_lost_output(config: Config, *, key: str = "out", default: str = "") -> None:
    """A job's working directory is a temporary copy: what is written into it is lost with the job.

    Args:
        config: of the command. key: of the section run. default: where output goes without that option.
    """
    if not _in_submitted_job():
        return
    out = getattr(config.run, key) or default
    if out and storage.is_local(out) and not out.startswith(("/", "file:", "local:")):
        raise UserError(
            f"run.{key} = {out!r} is relative: under ray job submit the working directory is a temporary copy, and "
            "what is written there is lost; give an absolute path or a URI that all nodes see"
        )


def _in_submitted_job() -> bool:
    return "job_submission_id" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")


def _launcher(config: Config) -> Launcher:
    """What starts the workers; asks for the cluster before any work is done."""
    if not config.cluster.ray:
        return on_local_workers
    from distgnn import ray_train  # seconds to import

    ray_train.check_cluster(config.cluster)
    return ray_train.on_ray_workers


def datasets() -> None:
    """Print the datasets that can be named, with counts and state."""
    print(format_datasets(list_datasets()))


def prepare(config: Config) -> PreparedDataset:
    """Make a dataset from a log or a name and say where it is."""
    _refuse_lost_output(config)
    dataset = preparation.prepare(config)
    print(f"prepared dataset: {dataset.path}")
    return dataset


def distill(config: Config) -> dict[str, Any]:
    """Distil a teacher's run (`run.path`) into a student's (`run.out`); returns the report.

    Its `models` are rows of teacher, compressed teachers, student and int8 student: metrics, bytes, latency_ms.
    """
    _refuse_lost_output(config, key="out" if config.run.out else "path")
    report = run_distillation(config, _launcher(config))
    records = report.pop("records")
    for row, latency in zip(report["models"], _latencies(config.run.path, report), strict=True):
        row["latency_ms"] = latency
    *others, own = report["models"]
    report |= {"model": own["model"], "bytes": own["bytes"], "latency_ms": own["latency_ms"], "baselines": others}
    write_report(report["run"], report, records)
    print(format_table(report["models"], ["model", "recall@20", "ndcg@20", "row_bytes", "bytes", "latency_ms"]))
    print(f"report: {storage.join(report['run'], 'report.html')}")
    return report


def _latencies(teacher_run: str, report: dict[str, Any]) -> list[float]:
    """Milliseconds of one top-20 request for each of the report's models, by the path that serves it."""
    teacher, student = read_export(teacher_run), read_export(report["run"])
    exact = read_export(storage.join(report["run"], FLOAT_FOLDER))
    n_users = len(teacher.users)
    rows = np.concatenate([teacher.users.values, teacher.items.values])
    closed = closed_form_tables(rows, np.arange(len(rows)) < n_users, student.manifest["dim"])
    tables: dict[str, tuple[Table, Table]] = {
        "teacher": (teacher.users, teacher.items),
        **{name: (table.take(slice(n_users)), table.take(slice(n_users, None))) for name, table in closed.items()},
        "student": (exact.users, exact.items),
        "student-int8": (student.users, student.items),
    }
    return [request_latency(teacher, *tables[row["model"]]) for row in report["models"]]


def _table(report: dict[str, Any]) -> str:
    rows = [*report.get("baselines", []), {"model": report.get("model", "teacher"), **report["metrics"]}]
    return format_table([r for r in rows if len(r) > 1], _COLUMNS)


def _finish(run: str, report: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    write_report(run, report, records)
    print(
        f"{report['dataset']['name']}, {report['split']} split, all {report['dataset']['n_items']:,} items ranked for "
        f"{report['n_evaluated']:,} users ({report['n_dropped']:,} without an item to find are left out)"
    )
    print(_table(report))
    straggler = straggler_sentence(report)
    if straggler:
        print(straggler)
    print(f"report: {storage.join(run, 'report.html')}")
    return report


def train(config: Config) -> dict[str, Any]:
    """Train a teacher, evaluate it (beside `evaluate.baselines`), write the run directory; returns the report."""
    _refuse_lost_output(config, default="runs/<dataset>-<time>")
    _refuse_lost_output(config, key="trace")
    report = run_training(config, _launcher(config))
    records = report.pop("records")
    _, dataset = open_run(_with_path(config, report["run"]))
    report["model"] = config.model.encoder
    if config.evaluate.baselines and report["metrics"]:
        started = time.perf_counter()
        report["baselines"] = run_baselines(dataset, config.evaluate.baselines, report["split"], config)
        report["seconds"]["baselines"] = time.perf_counter() - started
    return _finish(report["run"], report, records)


def _with_path(config: Config, run: str) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, path=run))


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate a run (`run.path`), baselines (`evaluate.baselines`), or both in one table; returns the report.

    The report goes to `run.out`, or beside the run, or, for baselines alone, nowhere without `run.out`.
    """
    _refuse_lost_output(config)
    if config.run.path:
        _refuse_lost_output(config, key="path")
        merged, dataset = open_run(config)
        out = config.run.out or storage.join(config.run.path, f"evaluation-{config.evaluate.split}")
        if config.run.out:
            publishing.refuse_used(out)
        student = teacher_of(config.run.path) is not None
        run = run_student_evaluation if student else run_evaluation
        report = run(config, _launcher(config))
        report["model"] = "student-int8" if student else merged.model.encoder
        if config.evaluate.baselines:
            report["baselines"] = run_baselines(dataset, config.evaluate.baselines, config.evaluate.split, merged)
        return _finish(out, report, [])
    if not config.evaluate.baselines:
        raise UserError("evaluate: name a run (--set run.path=RUN) or baselines (--baselines toppop,itemknn,gfcf,als)")
    if config.run.out:
        publishing.refuse_used(config.run.out)
    return _evaluate_baselines(config)


def _evaluate_baselines(config: Config) -> dict[str, Any]:
    dataset = preparation.open_or_prepare(config)
    rows = run_baselines(dataset, config.evaluate.baselines, config.evaluate.split, config)
    print(format_table(rows, [*_COLUMNS, "fit_seconds"]))
    result = {
        "dataset": dataset.counts(),
        "config": config.to_dict(),
        "split": config.evaluate.split,
        "baselines": rows,
    }
    if config.run.out:
        storage.write_json(storage.join(config.run.out, "report.json"), result)
    return result


def recommend(config: Config) -> dict[str, Any]:
    """Write lists by a run's export (`run.path`) to the file `run.out`; returns what was done, see `batch`."""
    _refuse_lost_output(config)
    return write_recommendations(config)


def compare(
    a: str, b: str, *, loss_tolerance: float | None = None, metric_tolerance: float | None = None
) -> Comparison:
    """Print whether two runs are one, and where they first differ; see `comparison.compare_runs`."""
    found = compare_runs(a, b, loss_tolerance, METRIC_TOLERANCE if metric_tolerance is None else metric_tolerance)
    print(found.table())
    return found
