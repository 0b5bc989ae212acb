"""Start the workers of a job: in this process for one, else one process a worker over plain torch.distributed.

A job is a function `(config, run, dataset, group) -> report` that every worker calls, named `module:function`.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from distgnn import beat, publishing, storage
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.errors import TRAINING_MEMORY, system_refusal
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import open_or_prepare
from distgnn.training.bus_error import explained_bus_error
from distgnn.training.checkpoint import list_checkpoints, remove_unfinished
from distgnn.training.supervision import run_attempt
from distgnn.training.trace import check_trace_target
from distgnn.types import UserError, WorkerError

Report = dict[str, Any]
Launcher = Callable[[str, Config, str, PreparedDataset], Report]  # job, config, run directory, dataset

TRAIN_JOB = "distgnn.training.run:run_worker"
EVALUATE_JOB = "distgnn.training.run:evaluate_worker"
CONFIG_FILE, DATASET_FILE = "config.toml", "dataset.json"


def run_training(config: Config, launch: Launcher | None = None) -> Report:
    """Prepare the dataset where needed, train on `cluster.workers` workers, write the run directory.

    Args:
        config: of the run. launch: starts the workers; None: processes of this machine.

    Returns:
        The report, with `run`: the run directory, and `records`: those of metrics.jsonl.
    """
    started = time.perf_counter()
    _check_target(config)
    dataset = open_or_prepare(config)
    config = config.for_edges(dataset.n_fit).for_log(dataset.split, dataset.has_timestamps)
    prepared = time.perf_counter() - started
    run = config.run.out or f"runs/{dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with begin_run(config, run, dataset):
        report = (launch or on_local_workers)(TRAIN_JOB, config, run, dataset)
    report["seconds"]["prepare"] = prepared
    report["seconds"]["total"] += prepared
    return {**report, "run": run}


@contextmanager
def begin_run(config: Config, run: str, dataset: PreparedDataset, more: dict[str, str] | None = None) -> Iterator[None]:
    """A run directory with its config and dataset, for the workers to fill within the block.

    Args:
        config, dataset: of the run. run: its directory: new, or with `run.resume` one of the same data.
        more: for dataset.json; `teacher` makes it a student's.

    Raises:
        UserError: the directory is in use, of another dataset, or of a teacher where a student's is wanted, or the
            other way round.
    """
    if config.run.resume:
        _refuse_other_dataset(run, dataset)
        _refuse_other_kind(run, is_student="teacher" in (more or {}))
    else:
        publishing.refuse_used(run)
    facts = {"name": dataset.name, "path": storage.from_anywhere(dataset.path), "dataset_hash": dataset.data_hash}
    with _undone_without_checkpoint(run):
        storage.write_bytes(storage.join(run, CONFIG_FILE), config.to_toml().encode())
        storage.write_json(storage.join(run, DATASET_FILE), {**facts, **(more or {})})
        yield


def _check_target(config: Config) -> None:
    """Refuse a run directory that cannot be used, before the work of preparing."""
    run = config.run.out
    if config.run.resume and not run:
        raise UserError("run.resume = true needs the run to go on with: name its directory in run.out")
    if run and not (config.run.resume and storage.exists(storage.join(run, DATASET_FILE))):
        publishing.refuse_used(run)
    if config.run.trace:
        check_trace_target(config.run.trace, run)


@contextmanager
def _undone_without_checkpoint(run: str) -> Iterator[None]:
    """A mistake found before the first new checkpoint leaves the run as it was: not there, or as it was to resume.

    A checkpoint that was being written when the run failed takes room and is of no use: it is removed.
    """
    uris = [storage.join(run, name) for name in (CONFIG_FILE, DATASET_FILE)]
    before = {uri: storage.read_bytes(uri) for uri in uris if storage.exists(uri)}
    last, existed = _checkpoint_uris(run), storage.exists(run)
    try:
        yield
    except Exception as error:
        with suppress(UserError):  # the store may be what failed
            remove_unfinished(run)
            if isinstance(error, (UserError, OSError)) and _checkpoint_uris(run) == last:
                for uri, content in before.items():
                    if storage.read_bytes(uri) != content:
                        storage.write_bytes(uri, content)
                if not before:
                    storage.remove_folder(run, keep_root=existed)
        raise


def _checkpoint_uris(run: str) -> list[str]:
    return [info.uri for info in list_checkpoints(run)]


def _refuse_other_dataset(run: str, dataset: PreparedDataset) -> None:
    """Its partitions and workers may change, checkpoints being by stable id; its data may not."""
    uri = storage.join(run, DATASET_FILE)
    if not storage.exists(uri):
        return
    known = storage.read_json(uri)
    if known.get("dataset_hash") != dataset.data_hash:
        raise UserError(
            f"{run}: its checkpoints belong to another dataset ({known['name']}, now {dataset.name})"
            "; choose another run.out, or the dataset that it was trained on"
        )


def _refuse_other_kind(run: str, *, is_student: bool) -> None:
    uri = storage.join(run, DATASET_FILE)
    known = storage.read_json(uri) if storage.exists(uri) else None
    if known is None or ("teacher" in known) == is_student:
        return
    if is_student:
        raise UserError(f"{run}: is a teacher's run; to go on with a student, name the student's own run in run.out")
    raise UserError(f"{run}: is a student's run; to go on with a teacher, name the teacher's own run in run.out")


def open_run(config: Config) -> tuple[Config, PreparedDataset]:
    """Config and dataset of the run that `run.path` names; evaluate, baselines and cluster come from `config`."""
    run = config.run.path
    if not run or not storage.exists(storage.join(run, CONFIG_FILE)):
        raise UserError(f"run.path = {run!r}: no config.toml there; name the directory of a training run")
    trained = load_config(storage.local_copy(storage.join(run, CONFIG_FILE)))
    known = storage.read_json(storage.join(run, DATASET_FILE))
    dataset = PreparedDataset.open(known["path"])
    if known.get("dataset_hash") != dataset.data_hash:
        raise UserError(f"{run}: {dataset.path} is not the dataset that the run was trained on")
    partition = dataclasses.replace(trained.partition, parts=trained.parts)
    merged = dataclasses.replace(
        trained,
        run=dataclasses.replace(trained.run, out=config.run.out, path=run),
        partition=partition,
        evaluate=config.evaluate,
        baselines=config.baselines,
        cluster=config.cluster,
    )
    return merged, dataset


def run_evaluation(config: Config, launch: Launcher | None = None) -> Report:
    """Evaluate the run that `run.path` names on `evaluate.split`; returns its report."""
    merged, dataset = open_run(config)
    return {**(launch or on_local_workers)(EVALUATE_JOB, merged, merged.run.path, dataset), "run": merged.run.path}


def local_workers(config: Config) -> int:
    """Worker processes to start on this machine: with a range, as many as cores and GPUs allow."""
    cluster = config.cluster
    room = len(os.sched_getaffinity(0)) // (cluster.threads_per_worker or 1)
    if cluster.use_gpu:
        room = min(room, torch.cuda.device_count())
    return cluster.fitting_workers(room)


def worker_threads(config: Config) -> int:
    """Threads of each worker process: as the config says, else the machine's cores shared out."""
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    return max(1, len(os.sched_getaffinity(0)) // local_workers(config))


def on_local_workers(job: str, config: Config, run: str, dataset: PreparedDataset) -> Report:
    """Run a job on `cluster.workers` processes of this machine; rank 0's report.

    After a worker's death or stall all are started again, and go on from the run's last checkpoint. One worker runs in
    this process: there is nobody to see it die.

    Raises:
        UserError: a mistake that a worker has met.
        WorkerError: workers died or stalled more often than `cluster.max_failures`.
    """
    task = {"job": job, "config": config.to_dict(), "run": run, "dataset": str(dataset.path)}
    most = config.cluster.max_failures
    for failures in itertools.count(1):
        workers, threads = _workers_now(config)
        if workers == 1:
            with explained_bus_error(lambda: _bus_error_in_words(dataset)):
                return run_rank(job, config, run, dataset, 0, 1, "", threads)
        try:
            report = run_attempt(task, workers, threads, config.cluster.timeout_seconds)
            dataset.in_use.refuse_change()
            return report
        except WorkerError as error:
            if change := dataset.in_use.change():  # may end a worker in any way; another attempt would train on it
                raise WorkerError(f"{error}: {change}") from None
            if failures > most:
                tried = f"{most} restart{'s' * (most > 1)} did not help (cluster.max_failures)"
                raise WorkerError(f"{error}; {tried if most else 'the run is stopped'}") from None
            where = _goes_on_from(config, run)
            print(f"{error}; {where} (restart {failures} of {most})", file=sys.stderr, flush=True)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True))
        task["config"] = config.to_dict()
    raise AssertionError("never reached")


def _workers_now(config: Config) -> tuple[int, int]:
    """Workers to start and threads of each; of a range, says how many."""
    workers, threads = local_workers(config), worker_threads(config)
    least, most = config.cluster.min_workers, config.cluster.max_workers
    if least < most:
        what = f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
        print(f"{what}, as the cores allow (cluster.workers = [{least}, {most}])", file=sys.stderr, flush=True)
    return workers, threads


def _bus_error_in_words(dataset: PreparedDataset) -> str:
    """What to say where this process, the only worker, has read beyond the end of a file."""
    change = dataset.in_use.change() or "a file that it maps was cut off, or its disk failed"
    return f"worker 0 was killed by signal {signal.SIGBUS:d} ({signal.SIGBUS.name}) {beat.own().in_words()}: {change}"


def _goes_on_from(config: Config, run: str) -> str:
    """Where another attempt begins."""
    found = [] if run == config.run.path else list_checkpoints(run)  # an evaluation reads the run that it is of
    return f"going on from {found[-1].phase} step {found[-1].step}" if found else "starting again"


def run_rank(
    job: str,
    config: Config,
    run: str,
    dataset: PreparedDataset,
    rank: int,
    workers: int,
    init_method: str,
    threads: int,
    device: torch.device | None = None,
) -> Report:
    """What one worker does: join the group, do its part of the job, leave.

    After an error a worker among others stays in the group: its leaving would fail them too, with errors of their own.
    `device` is the worker's GPU where the launcher has chosen it.
    """
    torch.set_num_threads(threads)
    beat.claim(beat.TRAINER)
    group = WorkerGroup.join(
        rank,
        workers,
        use_gpu=config.cluster.use_gpu,
        timeout_seconds=config.cluster.timeout_seconds,
        init_method=init_method,
        device=device,
    )
    try:
        report = job_function(job)(config, run, dataset, group)
    except BaseException as error:
        if workers == 1:
            group.leave()
        refusal = system_refusal(error, f"worker {rank} {beat.own().in_words()}", TRAINING_MEMORY)
        if refusal is None:
            raise
        raise refusal from error
    group.leave()
    return report


def job_function(job: str) -> Callable[[Config, str, PreparedDataset, WorkerGroup], Report]:
    """The function that `module:function` names."""
    module, _, name = job.partition(":")
    function: Callable[[Config, str, PreparedDataset, WorkerGroup], Report] = getattr(
        importlib.import_module(module), name
    )
    return function
