"""Memory that all workers map, where they share a host, and where they meet to take turns with it.

The memory has no name: it is a file descriptor of rank 0's (memfd_create), which the others open through /proc. The
system takes it back with the last process that maps it, however that ends. A page takes memory once it is written to.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import select
import sys
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

from distgnn.distributed import futex
from distgnn.distributed.process_group import WorkerGroup
from distgnn.kernels.fence import fence
from distgnn.pages import map_shared
from distgnn.types import WorkerError

_NAME = "distgnn-rows"
_HEAD = mmap.PAGESIZE  # the token, then each worker's turn in a cache line of its own
LINE_BYTES = 64  # of a worker's counters: nobody else writes to its cache line
_TOKEN_BYTES = LINE_BYTES
_MOST_WORKERS = _HEAD // LINE_BYTES - 1
_YIELDS = 20  # before a wait sleeps
_PAUSE_SECONDS = 20e-6  # where no sleep can be ended by another process
_LOOK_SECONDS = 0.05  # how often a wait looks whether the others are alive
_meetings: weakref.WeakSet[Meeting] = weakref.WeakSet()


class Meeting:
    """Where the workers of a host wait for each other, by counters in memory that they share.

    Args:
        lines: int64 `[W, k]`, shared, 0 at first: how often each has come, and whether it has left.
        rank: of this worker. pids: of all of them. timeout: of a wait.
    """

    def __init__(self, lines: np.ndarray, rank: int, pids: list[int], timeout: timedelta) -> None:
        self.rank, self.pids, self.timeout = rank, pids, timeout
        self._turns, self._left = lines[:, 0], lines[:, 1]
        # The lower half of each counter: it is what a wait can sleep for.
        self._address = [row.ctypes.data + 4 * (sys.byteorder == "big") for row in lines]
        self._turn = 0
        try:
            self._ends = {os.pidfd_open(pid): other for other, pid in enumerate(pids) if other != rank}
        except ProcessLookupError as error:
            raise WorkerError(f"worker {rank}: another worker has ended") from error
        self._poll = select.poll()
        for end in self._ends:
            self._poll.register(end, select.POLLIN)
        weakref.finalize(self, _close, list(self._ends))
        _meetings.add(self)

    def another(self, lines: np.ndarray) -> Meeting:
        """One more of the same workers, by other counters."""
        return Meeting(lines, self.rank, self.pids, self.timeout)

    def arrive(self) -> None:
        """Tell the others that this worker is there, and go on: what it has written is seen by who waits for it."""
        self._turn += 1
        fence()
        self._turns[self.rank] = self._turn
        if futex.AVAILABLE:
            futex.wake(self._address[self.rank])

    def _late(self) -> list[int]:
        """Who has not arrived as often as this worker."""
        turn = self._turn
        late = [rank for rank, come in enumerate(self._turns.tolist()) if come < turn]
        if not late:
            fence()
        return late

    @property
    def complete(self) -> bool:
        """Whether everybody has arrived as often as this worker: a wait would not last."""
        return not self._late()

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait until everybody has arrived as often as this worker.

        Args:
            look: called now and then; may raise what ends the wait.

        Raises:
            WorkerError: a worker has ended or left, or did not come in time.
        """
        for _ in range(_YIELDS):
            if not self._late():
                return
            time.sleep(0)
        started = looked = time.monotonic()
        while late := self._late():
            self._sleep(late[0])
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                looked = now
                self._refuse_missing(now - started)
                look()

    def _sleep(self, other: int) -> None:
        """Until a worker that is late arrives, for no longer than a look may be late."""
        if not futex.AVAILABLE:
            time.sleep(_PAUSE_SECONDS)
            return
        seen = int(self._turns[other])
        if seen < self._turn:
            futex.wait(self._address[other], seen, _LOOK_SECONDS)

    def meet(self) -> None:
        """Arrive and wait."""
        self.arrive()
        self.wait()

    def _refuse_missing(self, waited: float) -> None:
        late = self._late()
        for end, _ in self._poll.poll(0):
            if self._ends[end] in late:
                raise WorkerError(f"worker {self.rank}: worker {self._ends[end]} has ended")
        for rank in late:
            if self._left[rank]:
                raise WorkerError(f"worker {self.rank}: worker {rank} has left the group")
        if late and waited > self.timeout.total_seconds():
            raise WorkerError(
                f"worker {self.rank}: has waited {waited:.0f} s (cluster.timeout_seconds) for worker {late[0]}"
            )

    def leave(self) -> None:
        """Nobody waits for this worker any longer."""
        self._left[self.rank] = 1


def leave_meetings() -> None:
    """Let nobody wait for this process, which has failed and goes on without its group."""
    for meeting in list(_meetings):
        meeting.leave()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def share_arrays(
    parts: list[tuple[tuple[int, ...], np.dtype]], group: WorkerGroup
) -> tuple[list[np.ndarray], Meeting] | None:
    """Arrays of all workers, of zeros, and where they meet; a collective.

    None, at every worker, where they cannot all map them: on several hosts, or in containers apart.

    Args:
        parts: shape and dtype of each array; each begins a page.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in parts]
    starts = np.cumsum([_HEAD, *(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)]).tolist()
    if group.size > _MOST_WORKERS or not hasattr(os, "memfd_create"):
        return None
    offer: dict[str, Any] = {}
    descriptor = -1
    if group.rank == 0:
        descriptor = os.memfd_create(_NAME)
        token = os.urandom(16)
        os.ftruncate(descriptor, starts[-1])
        os.pwrite(descriptor, token, 0)
        offer = {"path": f"/proc/{os.getpid()}/fd/{descriptor}", "token": token.hex()}
    offer = json.loads(group.share_text(json.dumps(offer)))
    memory = _map(offer["path"], starts[-1], bytes.fromhex(offer["token"]))
    mapped = group.sum_floats([float(memory is not None)])[0]
    if descriptor >= 0:
        os.close(descriptor)
    pids = np.zeros(group.size)
    pids[group.rank] = os.getpid()
    everybody = [int(pid) for pid in group.sum_floats(pids.tolist())]
    if memory is None or mapped < group.size:
        return None
    lines = memory[_TOKEN_BYTES:_HEAD].view(np.int64).reshape(-1, LINE_BYTES // 8)
    arrays = [
        memory[start : start + size].view(dtype).reshape(shape)
        for (shape, dtype), size, start in zip(parts, sizes, starts, strict=False)
    ]
    return arrays, Meeting(lines[: group.size], group.rank, everybody, group.timeout)


def _map(path: str, size: int, token: bytes) -> np.ndarray | None:
    """The memory that another process of this host offers; None where that is no such memory."""
    try:
        if _NAME not in os.readlink(path):  # on another host the path may be anything
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_size != size or os.pread(descriptor, len(token), 0) != token:
            return None
        return map_shared(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
