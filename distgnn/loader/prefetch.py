"""Sampling threads ahead of the trainer, with a bounded queue, reordered by step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from distgnn import beat
from distgnn.kernels.threads import beside
from distgnn.sampler import SeedOrder, TopologyStore
from distgnn.timeline import BLOCKED, SAMPLING, Timeline
from distgnn.types import SeedEdges

Batch = TypeVar("Batch", covariant=True)


class BatchSampler(Protocol[Batch]):
    """What makes a batch of a step's seeds, as `distgnn.sampler.NeighborSampler` does; called by several threads.

    Attributes:
        store: where it takes rows of the graph from. round_trips: how often a step asks it after its seeds.
    """

    @property
    def store(self) -> TopologyStore: ...

    @property
    def round_trips(self) -> int: ...

    def sample(self, seeds: SeedEdges, step: int) -> Batch:
        """The batch of a step."""


class PrefetchLoader(Generic[Batch]):
    """Minibatches of steps [start, stop), sampled by `threads` threads, at most `prefetch` ahead.

    The kernels release the GIL, so a thread samples while the trainer computes. An error in a thread is raised at its
    step, or where the store may wait at the first step after it. `blocked_seconds` is how long the trainer has waited
    for a minibatch. `blocked_by_others` is the part of it that other workers are to blame for: of each minibatch the
    share that its own thread waited for them.

    Where the store may wait for other workers, every worker makes the same loader and leaves it at the same step. What
    has been begun is then sampled to its end: the others have begun it too.
    """

    def __init__(
        self,
        order: SeedOrder,
        sampler: BatchSampler[Batch],
        start: int,
        stop: int,
        *,
        threads: int,
        prefetch: int,
        timeline: Timeline | None = None,
    ) -> None:
        self.order = order
        self.sampler = sampler
        self.start = start
        self.stop = stop
        self.threads = threads
        self.prefetch = prefetch
        self.timeline = timeline
        self.blocked_seconds = self.blocked_by_others = 0.0

    def _load(self, step: int) -> tuple[Batch, float]:
        """The minibatch, and the share of its time that went into waiting for other workers."""
        started = time.perf_counter()
        try:
            with beat.within(SAMPLING, step):
                batch = self.sampler.sample(self.order.seeds(step), step)
        except BaseException as error:
            self.sampler.store.fail(error)
            raise
        now = time.perf_counter()
        if self.timeline is not None:
            self.timeline.add(SAMPLING, started, now, step)
        waited = self.sampler.store.waited(step)
        return batch, waited and waited / (now - started)

    def __iter__(self) -> Iterator[Batch]:
        with beside(self.threads):
            yield from self._ahead()

    def _ahead(self) -> Iterator[Batch]:
        pending: deque[Future[tuple[Batch, float]]] = deque()
        store = self.sampler.store
        # No wider than what is pending at once: else a wave would wait for a step that nobody has begun.
        store.begin(self.start, self.stop, min(self.threads, self.prefetch), self.sampler.round_trips)
        next_step = self.start
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="distgnn-sampler")
        try:
            for step in range(self.start, self.stop):
                while next_step < self.stop and len(pending) < self.prefetch:
                    pending.append(pool.submit(self._load, next_step))
                    next_step += 1
                waiting = time.perf_counter()
                beat.at(BLOCKED, step)
                minibatch, by_others = pending.popleft().result()
                now = time.perf_counter()
                self.blocked_seconds += now - waiting
                self.blocked_by_others += by_others * (now - waiting)
                if self.timeline is not None:
                    self.timeline.add(BLOCKED, waiting, now, step)
                yield minibatch
        finally:
            store.finish(next_step)
            pool.shutdown(wait=True, cancel_futures=not store.may_wait)
            store.join()
