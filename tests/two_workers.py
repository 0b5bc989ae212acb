"""Two processes of a test's own, for what two workers do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def run_two_workers(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in two processes and wait; both must end well within two minutes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
