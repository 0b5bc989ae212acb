"""Two processes of a test's own, for what two workers do."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any


def to_the_end(work: Callable[..., None], *arguments: Any) -> None:
    """Call a worker's part and end its process, as `distgnn.training.worker` does."""
    work(*arguments)
    os._exit(0)


def run_two_workers(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in two processes and wait; both must end well within two minutes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=to_the_end, args=(work, rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
