"""How long the stages of a step take, and a request."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

REQUESTS = 200
_WARM_UP = 5
_MOST_SECONDS = 5.0


class StageClock:
    """Adds the wall time since the last lap to a stage.

    Args:
        seconds: stage -> seconds, added to.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.since
        self.since = now


def median_latency(request: Callable[[int], object], n_users: int, requests: int = REQUESTS) -> float:
    """Median milliseconds of `request(i)` over evenly spread i in [0, n_users), after a few to warm up.

    At most about five seconds in all.
    """
    picked = np.linspace(0, n_users - 1, min(requests, n_users)).astype(np.int64)
    for i in picked[:_WARM_UP]:
        request(int(i))
    seconds: list[float] = []
    for i in picked:
        started = time.perf_counter()
        request(int(i))
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > _MOST_SECONDS:
            break
    return float(np.median(seconds)) * 1000
