"""Workers that each start in a copy of the dataset from which the rows of the others' partitions are gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from distgnn.config import Config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import Report, job_function, on_local_workers


def launch(job: str, config: Config, run: str, dataset: PreparedDataset) -> Report:
    """Start a job on such workers."""
    own = {"run_worker": "train", "evaluate_worker": "evaluate"}[job.partition(":")[2]]
    book = dataset.book(config.partition.method, config.parts)
    for rank in range(config.cluster.workers):
        keep = book.worker_parts(rank, config.cluster.workers)
        folder = Path(f"{dataset.path}-of-{config.cluster.workers}-{rank}")
        if not folder.exists():
            shutil.copytree(dataset.path, folder, copy_function=os.link)
        for part in folder.rglob("part-*"):
            if int(part.name[5:]) not in keep:
                shutil.rmtree(part)
    return on_local_workers(f"tests.own_files:{own}", config, run, dataset)


def _in_own_copy(job: str, config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    own = PreparedDataset.open(f"{dataset.path}-of-{group.size}-{group.rank}", verify=False)
    return job_function(job)(config, run, own, group)


def train(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """A job: train."""
    return _in_own_copy("distgnn.training.run:run_worker", config, run, dataset, group)


def evaluate(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """A job: evaluate."""
    return _in_own_copy("distgnn.training.run:evaluate_worker", config, run, dataset, group)
