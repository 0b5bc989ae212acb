"""Start a distillation: what must be there, the student's run directory, and the workers."""

from __future__ import annotations

import dataclasses
import time

from distgnn import storage
from distgnn.config import Config
from distgnn.export.format import FOLDER
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import (
    DATASET_FILE,
    Launcher,
    Report,
    begin_run,
    on_local_workers,
    open_run,
)
from distgnn.types import UserError

DISTILL_JOB = "distgnn.distillation.run:distill_worker"
EVALUATE_STUDENT_JOB = "distgnn.distillation.run:evaluate_export_worker"


def teacher_of(run: str) -> str | None:
    """The teacher's run directory where a run is a student's, else None."""
    uri = storage.join(run, DATASET_FILE)
    known = storage.read_json(uri).get("teacher") if storage.exists(uri) else None
    return str(known) if known else None


def run_distillation(config: Config, launch: Launcher | None = None) -> Report:
    """Distil the run that `run.path` names into `run.out` (by default its folder `student`).

    Returns:
        The report, with `run`: the student's run directory, and `records`: those of metrics.jsonl.

    Raises:
        UserError: no teacher there, or a mistake in the options.
    """
    started = time.perf_counter()
    merged, dataset = _open_teacher(config)
    teacher = merged.run.path
    run = config.run.out or storage.join(teacher, "student")
    with begin_run(merged, run, dataset, {"teacher": storage.from_anywhere(teacher)}):
        report = (launch or on_local_workers)(DISTILL_JOB, merged, run, dataset)
    report["seconds"]["total"] = time.perf_counter() - started
    return {**report, "run": run}


def _open_teacher(config: Config) -> tuple[Config, PreparedDataset]:
    merged, dataset = open_run(config)
    teacher = merged.run.path
    if teacher_of(teacher):
        raise UserError(f"{teacher}: is a student itself; name its teacher's run, {teacher_of(teacher)}")
    if not storage.exists(storage.join(teacher, FOLDER, storage.MANIFEST)):
        raise UserError(
            f"{teacher}: has no trained teacher (no {FOLDER}/{storage.MANIFEST}: the training did not end); go on with "
            "distgnn train --resume first"
        )
    merged = dataclasses.replace(
        merged,
        run=dataclasses.replace(merged.run, resume=config.run.resume, path=storage.from_anywhere(teacher)),
        distill=config.distill,
    ).for_edges(dataset.n_fit)
    return merged, dataset


def run_student_evaluation(config: Config, launch: Launcher | None = None) -> Report:
    """Evaluate the student run that `run.path` names on `evaluate.split`; returns its report."""
    merged, dataset = open_run(config)
    report = (launch or on_local_workers)(EVALUATE_STUDENT_JOB, merged, merged.run.path, dataset)
    return {**report, "run": merged.run.path}
