"""Which worker the others wait for, by the time that each spends on work of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.trainer import STAGES, Totals

WORK = ("blocked", "fetch", "forward", "backward", "optimizer")  # what a trainer does or waits for within its steps


def seconds_by_worker(totals: Sequence[Totals], group: WorkerGroup) -> dict[str, list[float]]:
    """Wall seconds of each stage, of waiting for the sampler and of training, one value a worker; a collective."""
    own = {stage: sum(t.seconds[stage] for t in totals) for stage in STAGES}
    return _gathered(
        {**own, "blocked": sum(t.blocked for t in totals), "training": sum(t.training for t in totals)}, group
    )


def own_seconds_by_worker(totals: Sequence[Totals], group: WorkerGroup) -> dict[str, list[float]]:
    """Seconds of WORK without those in collectives, one value a worker; a collective."""
    own = {stage: sum(t.seconds[stage] - t.collectives[stage] for t in totals) for stage in WORK if stage != "blocked"}
    return _gathered({"blocked": sum(t.blocked - t.blocked_by_others for t in totals), **own}, group)


def find_straggler(own: dict[str, list[float]]) -> dict[str, Any] | None:
    """The worker with the most work of its own, and where it loses most against the mean of all.

    Args:
        own: stage -> seconds of each worker.

    Returns:
        `rank`, `stage`, `seconds` (its work, all stages), `of_mean` (these seconds by their mean over the workers);
        None for a single worker, and where nothing was trained.
    """
    seconds = np.array(list(own.values()))
    work = seconds.sum(0)
    if len(work) < 2 or not work.mean() > 0:
        return None
    rank = int(work.argmax())
    lost = seconds[:, rank] - seconds.mean(1)
    return {
        "rank": rank,
        "stage": list(own)[int(lost.argmax())],
        "seconds": float(work[rank]),
        "of_mean": float(work[rank] / work.mean()),
    }


def _gathered(values: dict[str, float], group: WorkerGroup) -> dict[str, list[float]]:
    table = np.zeros((len(values), group.size))
    table[:, group.rank] = list(values.values())
    gathered = np.reshape(group.sum_floats(table.reshape(-1).tolist()), table.shape)
    return dict(zip(values, gathered.tolist(), strict=True))
