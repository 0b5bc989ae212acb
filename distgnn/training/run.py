"""A whole run on one worker: the fit that validation steers, the final fit on all edges, evaluation, export, report."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from distgnn import beat
from distgnn.config import Config
from distgnn.distributed.device_memory import free_bytes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.traffic import Traffic
from distgnn.partition.book import PartitionBook
from distgnn.partition.dataset import PreparedDataset
from distgnn.timeline import EXPORT
from distgnn.training.checkpoint import CheckpointInfo, choose_checkpoint
from distgnn.training.export import write_embeddings
from distgnn.training.facts import ranking_facts, run_facts
from distgnn.training.memory import FeatureNeed, choose_topology, place_tables, topology_statement
from distgnn.training.recorder import Recorder, read_records
from distgnn.training.straggler import (
    find_straggler,
    own_seconds_by_worker,
    own_variance_by_worker,
    seconds_by_worker,
)
from distgnn.training.trace import Trace
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import UserError


def run_worker(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Train as the config says; every worker calls it. Returns the report (rank 0's is the one to write)."""
    started = time.perf_counter()
    trace = Trace(config.run.trace, group) if config.run.trace else None
    last, faults = choose_checkpoint(run, group) if config.run.resume else (None, [])
    keep = _records_until(run, last)
    recorder = Recorder(run, tensorboard=config.run.tensorboard, active=group.rank == 0, keep=keep)
    for fault in faults:
        recorder.warn(fault)
    phase = "fit" if config.train.max_steps else config.train.phase
    trainers = []
    epochs = config.train.epochs
    trainer = None
    if phase in ("fit", "both") and not (last is not None and last.phase == "full"):
        trainer = phase_trainer(config, run, dataset, "fit", group, recorder, last)
        trainers.append(trainer)
        last = None
        trainer.train(epochs, dataset.edges("valid"), config.train.max_steps)
        epochs = trainer.schedule.best_epoch or epochs
        if phase == "fit" and not config.train.max_steps:
            trainer.restore_best()
    if phase in ("full", "both"):
        if trainer is not None:
            trainer.release()  # the fit's memory is done with before the full one starts
        final = phase_trainer(config, run, dataset, "full", group, recorder, last)
        if last is not None:
            epochs = final.schedule.final_epochs
        final.schedule.final_epochs = epochs
        recorder.say(f"final fit on train and validation edges: {epochs} epochs")
        final.train(epochs, None)
        trainers.append(final)
        trainer = final
    assert trainer is not None
    split = "test" if trainer.phase == "full" else "valid"
    report = evaluate_trainer(trainer, dataset, split, trainers, started)
    report["epochs"] = {"fit": trainers[0].schedule.best_epoch if trainers[0].phase == "fit" else None, "full": epochs}
    exporting = time.perf_counter()
    with beat.within(EXPORT):
        write_embeddings(run, trainer, dataset)
    if trace is not None:
        trace.timeline.add(EXPORT, exporting)
        trace.write(recorder)
    report["records"] = recorder.records
    return report


def phase_trainer(
    config: Config,
    run: str,
    dataset: PreparedDataset,
    phase: str,
    group: WorkerGroup,
    recorder: Recorder,
    last: CheckpointInfo | None,
) -> PhaseTrainer:
    """A phase's trainer, gone on from a checkpoint where one is given; says what it takes once nothing is amiss."""
    partitioning = (config.partition.method, config.parts)
    book = dataset.book(*partitioning)
    bounds = book.worker_bounds(group.size)
    n_own = int(np.diff(bounds)[group.rank])
    parts = book.worker_parts(group.rank, group.size)
    times = config.sampler.respects_time
    features = dataset.features() if config.model.features else {}
    need = _feature_need(config, book, parts, {role: rows.shape[1] for role, rows in features.items()}, group)
    weighted = config.sampler.weighted
    topology_bytes = dataset.topology_bytes(phase, *partitioning, times, weighted)
    every, own = (dataset.weight_table_bytes(phase, *partitioning, p) * weighted for p in (range(config.parts), parts))
    mode = choose_topology(config, book.n_nodes, n_own, topology_bytes, group, need, every)
    held, tables = (parts, own) if mode == "partitioned" else (None, every)
    placement = place_tables(config, book.n_nodes, n_own, phase, group, free_bytes(group.device), need, tables)
    topology = dataset.topology(phase, *partitioning, held, times, weighted)
    facts = {"dataset": dataset.name, "dataset_hash": dataset.data_hash}
    trainer = PhaseTrainer(config, run, topology, bounds, phase, group, recorder, facts, placement.device, features)
    if last is not None:
        trainer.resume(last)
    if config.sampler.exclude_targets and topology.n_edges <= 2 * config.train.batch_size:
        recorder.say(
            f"{phase}: a step of {config.train.batch_size:,} edges holds half of the {topology.n_edges:,} or more, and "
            "its edges are not sampled from: lower train.batch_size"
        )
    if last is not None:
        recorder.say(f"going on from {phase} step {last.step} on {_count(group.size, 'worker')}")
    recorder.say(placement.statement)
    recorder.say(f"{phase}: {topology_statement(topology, group)}")
    if trainer.feature_widths:
        widths = ", ".join(f"{role} {width:,}" for role, width in trainer.feature_widths.items())
        recorder.say(f"{phase}: features (values a row: {widths}) are projected and added to the embedding rows")
    return trainer


def _feature_need(
    config: Config, book: PartitionBook, parts: range, widths: dict[str, int], group: WorkerGroup
) -> FeatureNeed:
    """What a worker's features take: those of the nodes in its partitions, of the hot nodes and of those it caches."""
    users, items = (int(np.diff(book.offsets[parts.start : parts.stop], axis=1)[:, i].sum()) for i in (0, 1))
    cluster, n_nodes = config.cluster, book.n_nodes
    n_copies = cluster.n_hot(n_nodes) + cluster.n_cached(n_nodes) if group.size > 1 else 0
    return FeatureNeed.of(widths, {"user": users, "item": items}, n_copies)


def evaluate_trainer(
    trainer: PhaseTrainer, dataset: PreparedDataset, split: str, trainers: list[PhaseTrainer], started: float
) -> dict[str, Any]:
    """The report of a trained model; a collective."""
    config, group = trainer.config, trainer.group
    report: dict[str, Any] = {}
    edges = dataset.edges(split)
    result = None
    if len(edges[0]):
        result = trainer.evaluate(edges)
        if config.evaluate.sampled:
            report["metrics_sampled_inference"] = trainer.evaluate(edges, sampled=True).metrics
    dataset.in_use.refuse_change()
    totals = [t.totals for t in trainers]
    by_worker = seconds_by_worker(totals, group)
    own = own_seconds_by_worker(totals, group)
    blocked, trained = by_worker["blocked"], by_worker["training"]
    training = max(trained)
    traffic = Traffic()
    for part in totals:
        traffic.take(part.traffic)
    remote = traffic.over_workers(group)
    steps = max(1, sum(t.steps for t in totals))
    positives, drawn, every, without = group.sum_floats(
        [
            float(sum(t.positives for t in totals)),
            float(sum(t.sampled_edges for t in totals)),
            float(sum(t.users_with_every_item for t in totals)),
            float(sum(t.without_negatives for t in totals)),
        ]
    )
    report.update(
        **run_facts(config, dataset, group),
        **ranking_facts(result, dataset, split),
        phase=trainer.phase,
        seconds={
            "prepare": 0.0,
            **{stage: max(seconds) for stage, seconds in by_worker.items()},
            "total": time.perf_counter() - started,
        },
        seconds_by_worker=by_worker,
        own_seconds_by_worker=own,
        straggler=find_straggler(own, own_variance_by_worker(totals, group)),
        blocked_share=max(b / t if t else 0.0 for b, t in zip(blocked, trained, strict=True)),
        tables="host" if trainer.embedding.device.type == "cpu" else "device",
        topology="partitioned" if trainer.sampler.store.may_wait else "replicated",
        remote_bytes=sum(remote.values()),
        remote_bytes_by_kind=remote,
        remote_bytes_per_step={kind: n / steps for kind, n in remote.items()},
        exchanges_per_step={kind: n / steps for kind, n in traffic.exchanges.items()},
        messages_per_step={kind: n * group.size * (group.size - 1) / steps for kind, n in traffic.exchanges.items()},
        positives_per_second=positives / training if training else 0.0,
        sampled_edges_per_second=drawn / training if training else 0.0,
        users_with_every_item=int(every),
        edges_without_negatives=int(without),
        steps={t.phase: t.step for t in trainers},
        validation_ndcg=trainers[0].schedule.best_ndcg if trainers[0].schedule.best_epoch else None,
    )
    return report


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _records_until(run: str, last: CheckpointInfo | None) -> list[dict[str, Any]]:
    """Records up to a checkpoint: what came after it is trained again."""
    if last is None:
        return []
    return [
        r
        for r in read_records(run)
        if (r["phase"] == last.phase and r["step"] <= last.step) or (r["phase"] == "fit" and last.phase == "full")
    ]


def evaluate_worker(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Evaluate a run's last checkpoint (the final fit's where there is one); every worker calls it."""
    started = time.perf_counter()
    split = config.evaluate.split
    last, faults = choose_checkpoint(run, group)
    if last is None:
        raise UserError(f"{run}: the run has no checkpoint; train it first")
    recorder = _Quiet(group)
    for fault in faults:
        recorder.warn(fault)
    trainer = phase_trainer(config, run, dataset, last.phase, group, recorder, last)
    if split == "test" and last.phase == "fit":
        raise UserError(
            f"{run}: trained without its final fit; evaluate it with evaluate.split = valid, or train phase full"
        )
    if split == "valid" and last.phase == "full":
        raise UserError(f"{run}: the final fit has seen the validation edges; evaluate it with evaluate.split = test")
    if last.phase == "fit":
        trainer.restore_best()
    return evaluate_trainer(trainer, dataset, split, [trainer], started)


class _Quiet(Recorder):
    """A recorder that writes nothing and only warns."""

    def __init__(self, group: WorkerGroup) -> None:
        self.active = False
        self.records = []
        self._warns = group.rank == 0

    def warn(self, text: str) -> None:
        """A line on what is amiss."""
        if self._warns:
            print(text, file=sys.stderr, flush=True)
