"""A distillation job on one worker: train the student, judge it beside the teacher and closed-form tables, export."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from distgnn import beat, resources, storage
from distgnn.config import Config
from distgnn.distillation.compression import closed_form_tables
from distgnn.distillation.teacher import Teacher, load_teacher, memory_bytes, own_rows
from distgnn.distillation.trainer import StudentTrainer
from distgnn.distributed.process_group import WorkerGroup
from distgnn.export.format import FOLDER
from distgnn.export.reader import read_export
from distgnn.export.table import Table, quantize_rows
from distgnn.graph import Topology
from distgnn.partition.dataset import PreparedDataset
from distgnn.timeline import EVALUATION, EXPORT
from distgnn.training.checkpoint import choose_checkpoint
from distgnn.training.evaluation import RankingResult, build_ranking_task, evaluate_ranking
from distgnn.training.export import export_workers_rows
from distgnn.training.facts import ranking_facts, run_facts
from distgnn.training.inference import ModelScorer, OwnNodes
from distgnn.training.memory import refuse_host
from distgnn.training.recorder import Recorder, read_records
from distgnn.types import USER, UserError

FLOAT_FOLDER = "embeddings-float32"
COMPARED = ("teacher", "teacher-int8", "pca-int8", "svd-int8", "student", "student-int8")


class _Judge:
    """Evaluates tables of this worker's rows on held-out edges; every method is a collective."""

    def __init__(
        self,
        config: Config,
        dataset: PreparedDataset,
        topology: Topology,
        own: OwnNodes,
        group: WorkerGroup,
        split: str,
    ) -> None:
        self.topology, self.own, self.group = topology, own, group
        self.memory = int(config.evaluate.memory_gib * 2**30)
        edges = dataset.edges(split)
        there = len(edges[0]) > 0
        self.task = build_ranking_task(topology, *edges, node_range=(own.low, own.high)) if there else None

    def result(self, table: Table) -> RankingResult | None:
        """Metrics of rows `[n_own, d]`; None without held-out edges."""
        if self.task is None:
            return None
        vectors = torch.from_numpy(np.ascontiguousarray(table.dequantize())).to(self.group.device)
        scorer = ModelScorer(vectors, self.own, self.topology, self.task.users, self.group)
        cpu = self.group.cpu if self.group.size > 1 else None
        return evaluate_ranking(scorer, self.task, memory_bytes=self.memory, group=cpu)


def split_of(phase: str) -> str:
    """The split that a phase's training has not seen."""
    return "test" if phase == "full" else "valid"


def _place(config: Config, dataset: PreparedDataset, phase: str, group: WorkerGroup) -> tuple[Topology, np.ndarray]:
    topology = dataset.topology(phase, config.partition.method, config.parts)
    return topology, dataset.book(config.partition.method, config.parts).worker_bounds(group.size)


def distill_worker(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Distil the run that `run.path` names; every worker calls it. Returns the report without latencies."""
    started = time.perf_counter()
    facts = {"dataset": dataset.name, "dataset_hash": dataset.data_hash}
    phase = read_phase(config.run.path)
    topology, bounds = _place(config, dataset, phase, group)
    own = OwnNodes(topology, bounds, group.rank)
    teacher = load_teacher(config.run.path, own)
    needed = memory_bytes(
        len(own.nodes),
        int((own.node_type == USER).sum()),
        topology.n_nodes,
        topology.n_items,
        teacher.row_bytes,
        config.distill.dim,
        config.distill.top,
    )
    refuse_host(needed, "distill", "lower distill.top or distill.dim, or use fewer workers", group)
    statement = f"distill: at most {resources.gib(needed)} a worker"
    if config.distill.dim > teacher.dim:
        raise UserError(
            f"config: distill.dim = {config.distill.dim} is more than the teacher's width {teacher.dim}; a student is "
            f"narrower: set distill.dim to at most {teacher.dim}"
        )
    last, faults = choose_checkpoint(run, group) if config.run.resume else (None, [])
    trainer = StudentTrainer(config, run, topology, bounds, own, teacher, group, facts)
    if last is not None:
        trainer.resume(last)
    keep = [] if last is None else [r for r in read_records(run) if r["step"] <= last.step]
    # Only now is metrics.jsonl written anew: a refusal leaves the run as it was.
    recorder = Recorder(run, tensorboard=config.run.tensorboard, active=group.rank == 0, keep=keep)
    for fault in faults:
        recorder.warn(fault)
    if last is not None:
        recorder.say(f"going on from step {last.step} on {group.size} workers")
    recorder.say(statement)
    trainer.train(recorder)
    student = Table(trainer.embedding.weight.cpu().numpy())
    with beat.within(EVALUATION):
        report = _compare(config, dataset, topology, own, group, teacher, student)
        dataset.in_use.refuse_change()
    for folder, table in ((FOLDER, quantize_rows(student.values)), (FLOAT_FOLDER, student)):
        with beat.within(EXPORT):
            export_workers_rows(
                storage.join(run, folder),
                group,
                model=f"{teacher.model} student",
                dataset=dataset,
                phase=phase,
                topology=topology,
                own=own,
                rows=table,
            )
    report.update(_facts(config, dataset, trainer, group, started))
    report["records"] = recorder.records
    return report


def read_phase(teacher_run: str) -> str:
    """The phase that a run's export was trained in."""
    return str(storage.read_json(storage.join(teacher_run, FOLDER, storage.MANIFEST))["phase"])


def _compare(
    config: Config,
    dataset: PreparedDataset,
    topology: Topology,
    own: OwnNodes,
    group: WorkerGroup,
    teacher: Teacher,
    student: Table,
) -> dict[str, Any]:
    """A row for each of COMPARED: metrics, and bytes of users and items; a collective."""
    tables = {
        "teacher": Table(teacher.own),
        **closed_form_tables(teacher.own, own.node_type == USER, config.distill.dim, group),
        "student": student,
        "student-int8": quantize_rows(student.values),
    }
    split = split_of(teacher.phase)
    judge = _Judge(config, dataset, topology, own, group, split)
    models, last = [], None
    for name in COMPARED:
        table = tables[name]
        last = judge.result(table)
        row_bytes = table.nbytes // max(len(table), 1) if len(table) else 0
        row_bytes = int(group.max_floats([float(row_bytes)])[0])
        models.append(
            {
                "model": name,
                **(last.metrics if last else {}),
                "bytes": row_bytes * topology.n_nodes,
                "user_bytes": row_bytes * topology.n_users,
                "item_bytes": row_bytes * topology.n_items,
                "row_bytes": row_bytes,
            }
        )
    return {"models": models, "phase": teacher.phase, **ranking_facts(last, dataset, split)}


def _facts(
    config: Config, dataset: PreparedDataset, trainer: StudentTrainer, group: WorkerGroup, started: float
) -> dict[str, Any]:
    seconds = {name: group.max_floats([value])[0] for name, value in trainer.seconds.items()}
    training = group.max_floats([trainer.training])[0]
    positives, remote = group.sum_floats([float(trainer.positives), float(trainer.remote_rows)])
    return {
        **run_facts(config, dataset, group),
        "seconds": {**seconds, "training": training, "total": time.perf_counter() - started},
        "remote_bytes": int(remote) * (8 + 8 * config.distill.dim),
        "positives_per_second": positives / training if training else 0.0,
        "sampled_edges_per_second": 0.0,
    }


def evaluate_export_worker(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Evaluate a student run's exported rows on `evaluate.split`; every worker calls it."""
    started = time.perf_counter()
    export = read_export(run)
    phase, split = export.manifest["phase"], config.evaluate.split
    if split != split_of(phase):
        raise UserError(
            f"{run}: a student of a teacher that was trained on the {phase} graph; evaluate it with evaluate.split = "
            f"{split_of(phase)}"
        )
    topology, bounds = _place(config, dataset, phase, group)
    own = OwnNodes(topology, bounds, group.rank)
    result = _Judge(config, dataset, topology, own, group, split).result(Table(own_rows(export, own)))
    return {
        **run_facts(config, dataset, group),
        **ranking_facts(result, dataset, split),
        "phase": phase,
        "seconds": {"evaluation": result.seconds if result else 0.0, "total": time.perf_counter() - started},
        "remote_bytes": 0,
        "positives_per_second": 0.0,
        "sampled_edges_per_second": 0.0,
    }
