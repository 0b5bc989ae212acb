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
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np

from distgnn.distributed.process_group import WorkerGroup
from distgnn.types import WorkerError

_NAME = "distgnn-rows"
_HEAD = mmap.PAGESIZE  # the token, then each worker's turn in a cache line of its own
_LINE = 64
_TOKEN_BYTES = _LINE
_MOST_WORKERS = _HEAD // _LINE - 1
_YIELDS = 20  # before a wait sleeps
_PAUSE_SECONDS = 20e-6
_LOOK_SECONDS = 0.05  # how often a wait looks whether the others are alive
_meetings: weakref.WeakSet[Meeting] = weakref.WeakSet()


class Meeting:
    """Where the workers of a host wait for each other, by counters in memory that they share.

    Args:
        lines: int64 `[W, k]`, shared, 0 at first: how often each has come, and whether it has left.
        rank: of this worker. pids: of all of them. timeout: of a wait.
    """

    def __init__(self, lines: np.ndarray, rank: int, pids: list[int], timeout: timedelta) -> None:
        self.rank, self.pids = rank, pids
        self._turns, self._left = lines[:, 0], lines[:, 1]
        self._turn, self._timeout = 0, timeout.total_seconds()
        try:
            self._ends = {os.pidfd_open(pid): other for other, pid in enumerate(pids) if other != rank}
        except ProcessLookupError as error:
            raise WorkerError(f"worker {rank}: another worker has ended") from error
        self._poll = select.poll()
        for end in self._ends:
            self._poll.register(end, select.POLLIN)
        weakref.finalize(self, _close, list(self._ends))
        _meetings.add(self)

    def arrive(self) -> None:
        """Tell the others that this worker is there, and go on: what it has written is seen by who waits for it."""
        self._turn += 1
        self._turns[self.rank] = self._turn

    def wait(self) -> None:
        """Wait until everybody has arrived as often as this worker.

        Raises:
            WorkerError: a worker has ended or left, or did not come in time.
        """
        turns, turn, tries = self._turns, self._turn, 0
        started = looked = 0.0
        while turns.min() < turn:
            tries += 1
            if tries <= _YIELDS:
                time.sleep(0)
                continue
            time.sleep(_PAUSE_SECONDS)
            now = time.monotonic()
            started = started or now
            if now - looked > _LOOK_SECONDS:
                looked = now
                self._refuse_missing(now - started)

    def meet(self) -> None:
        """Arrive and wait."""
        self.arrive()
        self.wait()

    def _refuse_missing(self, waited: float) -> None:
        late = [rank for rank, turn in enumerate(self._turns.tolist()) if turn < self._turn]
        for end, _ in self._poll.poll(0):
            if self._ends[end] in late:
                raise WorkerError(f"worker {self.rank}: worker {self._ends[end]} has ended")
        for rank in late:
            if self._left[rank]:
                raise WorkerError(f"worker {self.rank}: worker {rank} has left the group")
        if late and waited > self._timeout:
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
    lines = np.frombuffer(memory, np.int64, (_HEAD - _TOKEN_BYTES) // 8, _TOKEN_BYTES).reshape(-1, _LINE // 8)
    arrays = [
        np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
        for (shape, dtype), start in zip(parts, starts, strict=False)
    ]
    return arrays, Meeting(lines[: group.size], group.rank, everybody, group.timeout)


def _map(path: str, size: int, token: bytes) -> mmap.mmap | None:
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
        return mmap.mmap(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
