"""What every report holds, whatever the job was."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distgnn import resources
from distgnn.config import Config
from distgnn.distributed.device_memory import peak_bytes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.evaluation import RankingResult


def run_facts(config: Config, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """Dataset, configuration, workers and the peak memory of each; a collective."""
    peaks = np.zeros((2, group.size))
    peaks[:, group.rank] = resources.peak_memory(), peak_bytes(group.device)
    host, gpu = np.reshape(group.sum_floats(peaks.reshape(-1).tolist()), (2, -1)).astype(np.int64).tolist()
    return {
        "dataset": dataset.counts(),
        "config": config.to_dict(),
        "seed": config.run.seed,
        "workers": group.size,
        "partitions": config.parts,
        "peak_rss_bytes": host,
        "peak_gpu_bytes": gpu,
        "torch": torch.__version__,
    }


def ranking_facts(result: RankingResult | None, dataset: PreparedDataset, split: str) -> dict[str, Any]:
    """Metrics on a split, and the users that they are of; without held-out edges (None) no metric."""
    return {
        "split": split,
        "metrics": result.metrics if result else {},
        "n_evaluated": result.n_evaluated if result else 0,
        "n_dropped": result.n_dropped if result else dataset.n_users,
    }
