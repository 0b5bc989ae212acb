"""Exchanges of several threads, posted by one communication thread in an order that is the same at every worker.

Collectives of a group must meet in the same order everywhere, and sampling threads finish in any order. So a thread
hands its exchange over and waits, and the communication thread takes the exchanges in turn: steps go in waves of as
many as there are threads, and each round of a wave (a hop's request, its answer) step by step. The threads of the other
steps compute while one step's exchange is under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distgnn import beat
from distgnn.distributed.exchange_waits import Arrived, Waits, exchange_failure
from distgnn.timeline import ANSWER, EXCHANGE, TURN
from distgnn.timing import Watch
from distgnn.types import WorkerError

_GRACE_SECONDS = 30.0


class _Turns:
    """Whose turn it is: rounds * (stop - start) turns of steps [start, stop), in waves of `width` steps."""

    def __init__(self, start: int, stop: int, width: int, rounds: int) -> None:
        self.stop = stop
        self.width, self.rounds = width, rounds
        self.wave = self.step = start
        self.round = 0

    def current(self) -> int | None:
        """The step; None after the last."""
        while self.wave < self.stop:
            if self.step < min(self.wave + self.width, self.stop):
                return self.step
            self.step = self.wave
            self.round += 1
            if self.round == self.rounds:
                self.round = 0
                self.wave = self.step = self.wave + self.width
        return None

    def advance(self) -> None:
        self.step += 1


class _Reply(Future[Arrived]):
    """What a call gives; the wait for it is counted."""

    def __init__(self, step: int, waits: Waits) -> None:
        super().__init__()
        self._step, self._waits = step, waits

    def result(self, timeout: float | None = None) -> Arrived:
        step, waits = self._step, self._waits
        try:
            if self.done():
                return super().result(timeout)
            with waits.of(step), beat.within(ANSWER, step):
                return super().result(timeout)
        finally:
            del self  # an error's traceback would keep its own future, and by its frames the communicator


@dataclass(frozen=True)
class _Posted:
    step: int
    values: np.ndarray
    sizes: list[int]
    expected: list[int] | None
    future: _Reply


class OrderedExchange:
    """All_to_alls of host arrays over a communicator that nothing else uses.

    Between `begin` and `finish` the communication thread posts them. Outside, a call is posted by the caller, of which
    there must then be one at a time, in the same order at every worker.

    Args:
        rank, size: of this worker. communicator: a gloo group of its own. watch: has the timeline.
    """

    def __init__(self, rank: int, size: int, communicator: Any, watch: Watch) -> None:
        self.rank, self.size = rank, size
        self._waits = Waits(watch)
        self._communicator = communicator
        self._changed = threading.Condition()
        self._turns: _Turns | None = None
        self._waiting: dict[int, _Posted] = {}  # by step
        self._under_way: _Posted | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._sent: dict[int, tuple[int, int]] = {}  # bytes and exchanges of a step

    def begin(self, start: int, stop: int, width: int, rounds: int) -> None:
        """Start the communication thread: every step of [start, stop) makes `rounds` calls, `width` steps at a time."""
        assert self._thread is None, "already begun"
        self._turns = _Turns(start, stop, width, rounds)
        self._thread = threading.Thread(target=self._serve, name="distgnn-communication", daemon=True)
        self._thread.start()

    def finish(self, stop: int) -> None:
        """No step from `stop` on will make a call, the same at every worker; the earlier ones are still served."""
        with self._changed:
            if self._turns is not None:
                self._turns.stop = min(self._turns.stop, stop)
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the last exchange; calls are then the caller's own again. After an error the wait is short."""
        if self._thread is not None:
            # A process that ends while the thread is within a collective is aborted, and its own error is lost.
            self._thread.join(None if self._error is None else _GRACE_SECONDS)
        self._thread = self._turns = None

    def fail(self, error: BaseException) -> None:
        """End every waiting and later call with an error: what they wait for will not come."""
        with self._changed:
            self._error = self._error or error
            for posted in (self._under_way, *self._waiting.values()):
                if posted is not None and not posted.future.done():
                    posted.future.set_exception(self._failure(posted.step))
            self._waiting.clear()
            self._changed.notify_all()

    def call(
        self, step: int, values: np.ndarray, sizes: Sequence[int], expected: Sequence[int] | None = None
    ) -> Future[Arrived]:
        """Send values to all workers and have theirs; a collective.

        Args:
            step: whose turn it takes. values: `[sum(sizes)]` in rank order. sizes: how many for each worker.
            expected: how many come from each worker; None: an exchange of the sizes tells.

        Raises:
            WorkerError: (by the future) the exchange failed here or at another worker, or timed out.
        """
        reply = _Reply(step, self._waits)
        posted = _Posted(step, values, list(sizes), None if expected is None else list(expected), reply)
        if self._turns is None:
            posted.future.set_result(self._exchange(posted))
            return posted.future
        with self._changed:
            if self._error is not None:
                posted.future.set_exception(self._failure(step))
            else:
                self._waiting[step] = posted
                self._changed.notify_all()
        return posted.future

    def sent(self, step: int) -> tuple[int, int]:
        """Bytes that the calls of a step have sent to other workers, and in how many exchanges; told once."""
        return self._sent.pop(step, (0, 0))

    def waited(self, step: int) -> float:
        """Seconds that a step's thread has waited for its exchanges: for its turn, others and data; told once."""
        return self._waits.seconds.pop(step, 0.0)

    def _serve(self) -> None:
        beat.claim(beat.COMMUNICATION)
        try:
            while (posted := self._next()) is not None:
                arrived = self._exchange(posted)
                with self._changed:
                    self._under_way = None
                    if not posted.future.done():
                        posted.future.set_result(arrived)
        except Exception as error:
            self.fail(error)

    def _next(self) -> _Posted | None:
        """The call whose turn it is, waited for; None at the end."""
        started = time.perf_counter()
        with self._changed:
            while True:
                assert self._turns is not None
                step = None if self._error is not None else self._turns.current()
                if step is None:
                    return None
                if step in self._waiting:
                    self._turns.advance()
                    self._under_way = self._waiting.pop(step)
                    if self._waits.timeline is not None:
                        self._waits.timeline.add(TURN, started, step=step)
                    return self._under_way
                beat.at(TURN, step)
                self._changed.wait()

    def _exchange(self, posted: _Posted) -> Arrived:
        with beat.within(EXCHANGE, posted.step), beat.waiting():
            return self._all_to_all(posted)

    def _all_to_all(self, posted: _Posted) -> Arrived:
        started = time.perf_counter()
        sent = len(posted.values) * posted.values.itemsize
        exchanges = 1
        expected = posted.expected
        if expected is None:
            sizes = torch.tensor(posted.sizes)
            arriving = torch.empty_like(sizes)
            dist.all_to_all_single(arriving, sizes, group=self._communicator)
            expected = arriving.tolist()
            sent += sizes.element_size() * (self.size - 1)
            exchanges += 1
        values = torch.from_numpy(np.ascontiguousarray(posted.values))
        arrived = values.new_empty(sum(expected))
        dist.all_to_all_single(
            arrived,
            values,
            output_split_sizes=expected,
            input_split_sizes=posted.sizes,
            group=self._communicator,
        )
        if self._waits.timeline is not None:
            self._waits.timeline.add(EXCHANGE, started, step=posted.step)
        before = self._sent.get(posted.step, (0, 0))
        self._sent[posted.step] = (before[0] + sent, before[1] + exchanges)
        return arrived.numpy(), expected

    def _failure(self, step: int) -> WorkerError:
        return exchange_failure(self.rank, step, self._error)
