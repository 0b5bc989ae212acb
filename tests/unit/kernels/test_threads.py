"""Rows shared out to threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from distgnn.kernels.threads import beside, share_rows


@pytest.mark.parametrize("n", [0, 1, 1000, 5000, 100_001])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_row_is_worked_on_once(n: int, threads: int) -> None:
    seen = np.zeros(n, np.int64)

    def work(start: int, stop: int) -> None:
        seen[start:stop] += 1

    share_rows(n, threads, work)
    assert (seen == 1).all()


def test_many_rows_go_to_several_threads_and_few_stay() -> None:
    def names(n: int, threads: int) -> set[str]:
        found: set[str] = set()
        meet = threading.Barrier(2, timeout=30) if threads > 1 and n > 10 else None

        def work(start: int, stop: int) -> None:
            if meet is not None and start < n // 4:  # the first two parts wait for each other
                meet.wait()
            found.add(threading.current_thread().name)

        share_rows(n, threads, work)
        return found

    here = threading.current_thread().name
    assert names(100_000, 1) == {here} == names(10, 2)
    assert len(names(100_000, 2)) == 2


def test_threads_at_work_beside_are_left_out() -> None:
    def names(threads: int) -> set[str]:
        found: set[str] = set()
        share_rows(100_000, threads, lambda start, stop: found.add(threading.current_thread().name))
        return found

    here = {threading.current_thread().name}
    with beside(1):
        assert names(2) == here
        with beside(1):
            assert names(2) == names(1) == here
        assert here.isdisjoint(names(3))
    with pytest.raises(KeyError), beside(1):
        raise KeyError
    assert here.isdisjoint(names(2))


def test_an_error_of_a_thread_is_the_callers() -> None:
    def work(start: int, stop: int) -> None:
        if start:
            raise ValueError("row")

    with pytest.raises(ValueError, match="row"):
        share_rows(10_000, 2, work)
