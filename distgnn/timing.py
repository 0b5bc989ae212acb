"""How long a request takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

REQUESTS = 200
_WARM_UP = 5
_MOST_SECONDS = 5.0


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
