"""How long the stages of a step take, and a request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from distgnn import beat
from distgnn.timeline import Timeline

REQUESTS = 200
_WARM_UP = 5
_MOST_SECONDS = 5.0


class Watch:
    """What the clocks of a worker share.

    Attributes:
        collective_seconds: that the trainer has spent in collectives: moving data and waiting for the others.
        timeline: where events go; None: nowhere.
    """

    def __init__(self) -> None:
        self.collective_seconds = 0.0
        self.timeline: Timeline | None = None

    @contextmanager
    def collective(self, name: str) -> Iterator[None]:
        """A collective of the trainer. `name`: of the event."""
        started = time.perf_counter()
        with beat.waiting():
            yield
        self.collected(name, started)

    def collected(self, name: str, started: float) -> None:
        """A collective that ends now."""
        now = time.perf_counter()
        self.collective_seconds += now - started
        if self.timeline is not None:
            self.timeline.add(name, started, now)


class Spread:
    """How much a sum of values, taken as independent ones, varies; the values are not kept (Welford, 1962).

    Attributes:
        n: values. mean: of them. squares: sum of their squared distances from it.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = self.squares = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.n += 1
        away = value - self.mean
        self.mean += away / self.n
        self.squares += away * (value - self.mean)

    @property
    def variance_of_sum(self) -> float:
        """Of the sum of all values; infinite for a single one."""
        if self.n < 2:
            return math.inf if self.n else 0.0
        return self.n * self.squares / (self.n - 1)


class StageClock:
    """Adds the wall time since the last lap to a stage.

    Args:
        seconds: stage -> seconds, added to.
        watch: tells what went into collectives, and has the timeline. collectives: stage -> seconds of them, added to.
    """

    def __init__(
        self, seconds: dict[str, float], watch: Watch | None = None, collectives: dict[str, float] | None = None
    ) -> None:
        self.seconds, self.collectives = seconds, collectives
        self.watch = Watch() if watch is None else watch
        self.since = time.perf_counter()
        self._in_collectives = self.watch.collective_seconds

    def lap(self, stage: str, event: str = "", then: str = "") -> None:
        """End a stage; the next one begins.

        Args:
            event: what the timeline calls it; empty: by its own name. then: the next one; empty: none of the clock's.
        """
        if then:
            beat.at(then)
        now = time.perf_counter()
        self.seconds[stage] += now - self.since
        if self.collectives is not None:
            self.collectives[stage] += self.watch.collective_seconds - self._in_collectives
            self._in_collectives = self.watch.collective_seconds
        if self.watch.timeline is not None:
            self.watch.timeline.add(event or stage, self.since, now)
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
