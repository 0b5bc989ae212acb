from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from distgnn.loader import PrefetchLoader
from distgnn.sampler import SeedOrder
from distgnn.timeline import BLOCKED, SAMPLING, Timeline
from tests.small_training import small_graph


class Clock:
    """Stands still, but for what is added; says when it has been read so often."""

    def __init__(self) -> None:
        self.now, self.reads = 0.0, 0
        self.changed = threading.Condition()

    def perf_counter(self) -> float:
        with self.changed:
            self.reads += 1
            self.changed.notify_all()
            return self.now

    def wait_for_reads(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.reads >= n, timeout=60)


class Store:
    """Each step has waited 4 seconds for other workers."""

    may_wait = False

    def waited(self, step: int) -> float:
        return 4.0

    def begin(self, *_: int) -> None: ...
    def finish(self, stop: int) -> None: ...
    def join(self) -> None: ...


class Sampler:
    """A step takes 10 seconds, and begins once the trainer waits for it."""

    round_trips = 0

    def __init__(self, clock: Clock) -> None:
        self.store, self.clock = Store(), clock

    def sample(self, seeds: Any, step: int) -> int:
        self.clock.wait_for_reads(4 * step + 2)  # before this step's sampling and before waiting; two more a step
        self.clock.now += 10
        return step


def test_the_trainer_is_blocked_in_part_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("distgnn.loader.prefetch.time", SimpleNamespace(perf_counter=clock.perf_counter))
    timeline = Timeline(0)
    order = SeedOrder(small_graph(), 40, 0)
    loader = PrefetchLoader(order, Sampler(clock), 0, 3, threads=1, prefetch=1, timeline=timeline)  # type: ignore[arg-type]
    assert list(loader) == [0, 1, 2]
    assert (loader.blocked_seconds, loader.blocked_by_others) == (30, 12)
    events = timeline.columns()
    for thread, name in enumerate((BLOCKED, SAMPLING)):
        own = events[events[:, 3] == thread]
        assert own[:, :2].tolist() == [[0, 10], [10, 20], [20, 30]], name
        assert own[:, 5].tolist() == [0, 1, 2]
