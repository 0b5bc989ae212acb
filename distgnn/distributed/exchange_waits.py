"""What the ways of exchanging while sampling have in common: how long a step has waited, and what its failure says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from distgnn.timeline import ANSWER, Timeline
from distgnn.timing import Watch
from distgnn.types import WorkerError

Arrived = tuple[np.ndarray, list[int]]  # values in rank order, and how many came from each worker


class Waits:
    """How long a step's thread has waited for what it called for.

    Attributes:
        seconds: by step.
    """

    def __init__(self, watch: Watch) -> None:
        self.seconds: dict[int, float] = {}
        self._watch = watch

    @property
    def timeline(self) -> Timeline | None:
        """Where waits are noted too, or None."""
        return self._watch.timeline

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """A wait of the calling thread."""
        started = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            self.seconds[step] = self.seconds.get(step, 0.0) + now - started
            if self.timeline is not None:
                self.timeline.add(ANSWER, started, now, step)


def exchange_failure(rank: int, step: int, error: BaseException | None) -> WorkerError:
    """What worker `rank` says of an exchange of a step that has failed."""
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return WorkerError(f"worker {rank}, sampling of step {step}: the exchange with the others ended: {why}")
