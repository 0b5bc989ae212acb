"""Rows shared out to threads: kernels release the GIL, and no row's result depends on who computes it.

Numba's own threads are not used: its default layer must not be entered by two threads at once, and sampling threads run
beside the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

_LEAST_ROWS = 1024  # fewer are not worth handing over
_PARTS = 4  # for each thread: rows are not equally dear


_busy = 0  # threads that are at work beside those who share rows out


@contextmanager
def beside(threads: int) -> Iterator[None]:
    """While so many other threads of this process compute, rows are shared out to fewer.

    Everybody waits for the last part: one that has to wait for a core, because there are more threads than cores, makes
    all wait.
    """
    global _busy
    _busy += threads
    try:
        yield
    finally:
        _busy -= threads


def share_rows(n: int, threads: int, work: Callable[[int, int], object]) -> None:
    """Call `work(start, stop)` for parts of range(n), by so many threads; returns when all are done.

    Args:
        threads: without those `beside`.
        work: a call of a kernel; must not share rows out itself.
    """
    threads = max(1, threads - _busy)
    parts = min(_PARTS * threads, n // _LEAST_ROWS)
    if threads == 1 or parts < 2:
        work(0, n)
        return
    bounds = [n * part // parts for part in range(parts + 1)]
    pool = _pool(threads)
    for future in [pool.submit(work, *span) for span in zip(bounds[:-1], bounds[1:], strict=True)]:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="distgnn-rows")
