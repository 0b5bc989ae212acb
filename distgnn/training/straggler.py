"""Which worker the others wait for, by the time that each spends on work of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.totals import STAGES, STEP_STAGES, Totals

_LEAST_SHARE = 0.05  # of the others' mean: less is not worth a name
_STANDARD_ERRORS = 3.0  # less may be chance


def seconds_by_worker(totals: Sequence[Totals], group: WorkerGroup) -> dict[str, list[float]]:
    """Wall seconds of each stage, of waiting for the sampler and of training, one value a worker; a collective."""
    own = {stage: sum(t.seconds[stage] for t in totals) for stage in STAGES}
    return _gathered(
        {**own, "blocked": sum(t.blocked for t in totals), "training": sum(t.training for t in totals)}, group
    )


def own_seconds_by_worker(totals: Sequence[Totals], group: WorkerGroup) -> dict[str, list[float]]:
    """Seconds of what a trainer does in its steps, or waits for, but for other workers; a collective."""
    own = {stage: sum(t.seconds[stage] - t.collectives[stage] for t in totals) for stage in STEP_STAGES}
    return _gathered({"blocked": sum(t.blocked - t.blocked_by_others for t in totals), **own}, group)


def own_variance_by_worker(totals: Sequence[Totals], group: WorkerGroup) -> list[float]:
    """Variance of the sum of a worker's own seconds, by how much its steps differ, seconds squared; a collective."""
    return _gathered({"own": sum(t.own.variance_of_sum for t in totals)}, group)["own"]


def find_straggler(own: dict[str, list[float]], variance: Sequence[float]) -> dict[str, Any] | None:
    """The worker that has significantly more work of its own than the others, and where it loses most against them.

    It must have 5% more than the mean of the others, and by more than three standard errors of that difference.

    Args:
        own: stage -> seconds of each worker. variance: of each one's sum.

    Returns:
        `rank`, `seconds` (its work), `others_seconds` (their mean), `stage`, and `stage_lost_seconds` (against their
        mean in it); None where no worker stands out.
    """
    seconds = np.array(list(own.values()))
    work = seconds.sum(0)
    if len(work) < 2:
        return None
    rank = int(work.argmax())
    others = np.delete(np.arange(len(work)), rank)
    mean = float(work[others].mean())
    error = np.sqrt(variance[rank] + np.mean(np.take(variance, others)) / len(others))
    lost = float(work[rank]) - mean
    if not (lost > _LEAST_SHARE * mean and lost > _STANDARD_ERRORS * error):
        return None
    by_stage = seconds[:, rank] - seconds[:, others].mean(1)
    stage = int(by_stage.argmax())
    return {
        "rank": rank,
        "seconds": float(work[rank]),
        "others_seconds": mean,
        "stage": list(own)[stage],
        "stage_lost_seconds": float(by_stage[stage]),
    }


def _gathered(values: dict[str, float], group: WorkerGroup) -> dict[str, list[float]]:
    table = np.zeros((len(values), group.size))
    table[:, group.rank] = list(values.values())
    gathered = np.reshape(group.sum_floats(table.reshape(-1).tolist()), table.shape)
    return dict(zip(values, gathered.tolist(), strict=True))
