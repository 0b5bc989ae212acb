"""Exchanges of sampling threads where all workers map the same memory: who has something to send leaves it there.

Each step has boxes of its own, so that threads of several steps take no turns, and no thread serves them. A worker's
box has two halves, which exchanges use in turn: who is an exchange ahead writes to the other half, and nobody can be
two ahead of one that still reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distgnn import beat
from distgnn.distributed.exchange_waits import Arrived, Waits, exchange_failure
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_memory import LINE_BYTES, Meeting, share_arrays
from distgnn.timeline import ANSWER
from distgnn.types import WorkerError

_CAPACITY = 1 << 22  # bytes of a half; longer messages go in several parts
_WORD = np.dtype(np.int64)


class _Boxes:
    """One step's, of all workers.

    Args:
        contents: uint8 `[2, W, c]`: by half and sender. sizes: int64 `[2, W, W]`: bytes for each receiver.
    """

    def __init__(self, contents: np.ndarray, sizes: np.ndarray, meeting: Meeting) -> None:
        self.contents, self.sizes, self.meeting = contents, sizes, meeting
        self.half = 0

    def leave(self, content: np.ndarray, sizes: list[int] | None) -> None:
        """Write this worker's part, uint8, to the half whose turn it is, and say so. `sizes`: of the whole message."""
        rank = self.meeting.rank
        self.half = 1 - self.half
        self.contents[self.half, rank, : len(content)] = content
        if sizes is not None:
            self.sizes[self.half, rank] = sizes
        self.meeting.arrive()


@dataclass(frozen=True)
class _Reply:
    """What a call gives; to be asked for before the step's next call."""

    exchange: MailboxExchange
    step: int
    content: np.ndarray
    dtype: np.dtype

    def result(self) -> Arrived:
        """Wait for what the others have sent."""
        return self.exchange.arrived(self.step, self.content, self.dtype)


class MailboxExchange:
    """All_to_alls of host arrays, as `OrderedExchange` makes them of messages.

    Any thread may call, of each step one at a time. No more steps may be under way at once than there are boxes, and
    they are consecutive ones.

    Args:
        arrays: see `of`. meeting: of the same workers; each step's boxes get one like it.
    """

    def __init__(self, arrays: list[np.ndarray], group: WorkerGroup, meeting: Meeting) -> None:
        contents, sizes, lines = arrays
        self.rank, self.size = group.rank, group.size
        self._waits = Waits(group.watch)
        self._boxes = [
            _Boxes(content, size, meeting.another(line))
            for content, size, line in zip(contents, sizes, lines, strict=True)
        ]
        self._error: BaseException | None = None
        self._sent: dict[int, tuple[int, int]] = {}  # bytes and exchanges of a step

    @classmethod
    def of(cls, group: WorkerGroup, steps: int) -> MailboxExchange | None:
        """For so many steps at once; None where the workers share no host. A collective."""
        w = group.size
        shared = share_arrays(
            [
                ((steps, 2, w, _CAPACITY), np.dtype(np.uint8)),
                ((steps, 2, w, w), _WORD),
                ((steps, w, LINE_BYTES // _WORD.itemsize), _WORD),
            ],
            group,
        )
        return None if shared is None else cls(shared[0], group, shared[1])

    def begin(self, start: int, stop: int, width: int, rounds: int) -> None:
        """Steps [start, stop) will be sampled, `width` at once: see `OrderedExchange`; nothing is to be begun."""
        assert width <= len(self._boxes)

    def finish(self, stop: int) -> None:
        """No step from `stop` on will make a call."""

    def join(self) -> None:
        """All calls have been made."""

    def fail(self, error: BaseException) -> None:
        """End every wait, now and later, with an error: what it waits for will not come."""
        self._error = self._error or error

    def call(
        self, step: int, values: np.ndarray, sizes: Sequence[int], expected: Sequence[int] | None = None
    ) -> _Reply:
        """Send values to all workers and have theirs; a collective.

        Args:
            step: whose boxes it takes. values: `[sum(sizes)]` in rank order. sizes: how many for each worker.
            expected: how many come from each worker, if known; the boxes tell.

        Raises:
            WorkerError: (by the reply) the exchange failed here or at another worker, or timed out.
        """
        content = np.ascontiguousarray(values).view(np.uint8)
        boxes = self._of(step)
        boxes.leave(content[: self._capacity], [n * values.itemsize for n in sizes])
        before = self._sent.get(step, (0, 0))
        self._sent[step] = (before[0] + len(content) + (self.size - 1) * _WORD.itemsize, before[1] + 1)
        return _Reply(self, step, content, values.dtype)

    @property
    def _capacity(self) -> int:
        return int(self._boxes[0].contents.shape[2])

    def _of(self, step: int) -> _Boxes:
        return self._boxes[step % len(self._boxes)]

    def arrived(self, step: int, content: np.ndarray, dtype: np.dtype) -> Arrived:
        """What has been sent to this worker in a step's last call. `content`: what this one sends, uint8."""
        boxes, capacity = self._of(step), self._capacity
        self._wait(boxes, step)
        sizes = boxes.sizes[boxes.half].copy()
        ends = np.cumsum(sizes, axis=1)
        start, stop = (ends - sizes)[:, self.rank], ends[:, self.rank]  # of this worker's, in each one's message
        counts = stop - start
        place = np.cumsum(counts) - counts
        values = np.empty(int(counts.sum()), np.uint8)
        for at in range(0, max(int(ends[:, -1].max()), 1), capacity):
            if at:
                boxes.leave(content[at : at + capacity], None)
                self._wait(boxes, step)
            for sender in range(self.size):
                low, high = max(int(start[sender]), at), min(int(stop[sender]), at + capacity)
                if low < high:
                    to = int(place[sender] - start[sender])
                    values[to + low : to + high] = boxes.contents[boxes.half, sender, low - at : high - at]
        return values.view(dtype), (counts // dtype.itemsize).tolist()

    def _wait(self, boxes: _Boxes, step: int) -> None:
        def refuse_failed() -> None:
            if self._error is not None:
                raise exchange_failure(self.rank, step, self._error)

        refuse_failed()
        if boxes.meeting.complete:
            return
        try:
            with self._waits.of(step), beat.within(ANSWER, step), beat.waiting_for_answer(step):
                boxes.meeting.wait(refuse_failed)
        except WorkerError as error:
            refuse_failed()
            self.fail(error)
            raise exchange_failure(self.rank, step, error) from error

    def sent(self, step: int) -> tuple[int, int]:
        """Bytes that the calls of a step have left for other workers, and in how many exchanges; told once."""
        return self._sent.pop(step, (0, 0))

    def waited(self, step: int) -> float:
        """Seconds that a step's thread has waited for the others; told once."""
        return self._waits.seconds.pop(step, 0.0)
