"""What a step is made of, what that costs one worker, and how fast several workers can be at best.

Splitting a batch repeats what its parts share: a neighbour that two workers reach is sampled from and fetched twice. So
W workers cannot be W times as fast. The bound counts, by sampling, what every worker does, and takes each unit for
what it costs a single worker that does one part after the other, nothing beside (`UNITS`). Of a step's time at W
workers it says:

- Workers meet once a step, to hand gradients over: from one meeting to the next, it is no less than that of the worker
  that trains longest. Only sampling may run ahead.
- Over the steps it is no less than what the busiest worker does in all of them, sampling included: it has one core.
- What goes between workers comes on top, at the bandwidth that the same workers reach when they do nothing else.

Nothing is granted for what every step costs whatever is in it, for waiting, merging or routing, or for caches and
memory bandwidth that two busy cores share: all that is what the measured rate may lose against the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distgnn.types import MiniBatch

UNITS = {
    "sampling": "edges",
    "fetch": "rows",
    "forward": "edges",
    "loss": "scores",
    "backward": "edges",
    "optimizer": "updated",
}


@dataclass(frozen=True)
class Work:
    """What one worker does in one step.

    Attributes:
        edges: sampled. rows: fetched. remote: of these, other workers' own. updated: own rows that anybody has touched.
        merged: gradients that come from others. scores: made in the loss.
    """

    edges: int
    rows: int
    remote: int
    updated: int
    merged: int
    scores: int


def work_of(batches: Sequence[MiniBatch], bounds: np.ndarray) -> list[Work]:
    """Of all W workers in one step, from their minibatches; bounds: int64 `[W + 1]` node ranges."""
    result = []
    for rank, batch in enumerate(batches):
        low, high = bounds[rank], bounds[rank + 1]
        owned = [b.nodes[(b.nodes >= low) & (b.nodes < high)] for b in batches]
        own = len(owned[rank])
        columns = batch.global_size  # in-batch
        if batch.negative_index is not None:
            columns = 1 + batch.negative_index.shape[-1]
        result.append(
            Work(
                edges=batch.sampled_edges,
                rows=len(batch.nodes),
                remote=len(batch.nodes) - own,
                updated=len(np.unique(np.concatenate(owned))),
                merged=sum(map(len, owned)) - own,
                scores=len(batch.share) * columns,
            )
        )
    return result


def unit_seconds(seconds: dict[str, float], work: Sequence[Work]) -> dict[str, float]:
    """Seconds of a stage's unit, from the stages' seconds of one worker and what it did in them."""
    return {stage: seconds[stage] / max(1, sum(getattr(step, unit) for step in work)) for stage, unit in UNITS.items()}


def least_seconds(costs: dict[str, float], work: Sequence[Sequence[Work]], exchange: float = 0.0) -> float:
    """Seconds that no run of these steps undercuts.

    Args:
        costs: of `unit_seconds`. work: of each step, that of each worker. exchange: seconds to move what goes between
            the workers.
    """
    by_stage = {
        stage: costs[stage] * np.array([[getattr(w, unit) for w in step] for step in work])
        for stage, unit in UNITS.items()
    }
    whole = sum(by_stage.values())
    assert isinstance(whole, np.ndarray)
    moving = by_stage["optimizer"]
    until_meeting = whole - by_stage["sampling"] - moving
    nobody = np.zeros_like(moving[:1])
    between_meetings = np.concatenate([until_meeting, nobody]) + np.concatenate([nobody, moving])
    return float(max(between_meetings.max(1).sum(), whole.sum(0).max())) + exchange


def exchange_seconds(n_bytes: dict[str, int], messages: float, memory: float, in_memory: bool) -> float:
    """Seconds that a worker's bytes of the kinds of `distgnn.distributed.traffic` take at these bandwidths.

    Args:
        messages: bytes a second of an all_to_all over gloo. memory: of a copy in shared memory.
        in_memory: rows are read where they are, which the fetch of own rows costs too; gradients and gathered outputs
            are written to shared memory and read from there.
    """
    through_memory = {"rows": 0, "gradients": 2, "gathered": 2} if in_memory else {}
    seconds = 0.0
    for kind, n in n_bytes.items():
        times = through_memory.get(kind)
        seconds += n / messages if times is None else times * n / memory
    return seconds
