from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distgnn.timing import median_latency
from distgnn.training.evaluation import build_ranking_task
from distgnn.training.latency import scorer_latency
from tests.small_training import small_graph


def test_the_median_is_of_the_requests_after_the_warm_up() -> None:
    seen: list[int] = []

    def request(i: int) -> None:
        time.sleep(0.05 if len(seen) < 5 else 0.002)
        seen.append(i)

    assert 2.0 <= median_latency(request, 1000, requests=21) < 20.0
    assert len(seen) == 26
    assert (seen[5], seen[-1]) == (0, 999)


@pytest.mark.parametrize("block", [25, 7])
def test_a_request_scores_every_item_of_one_user(block: int) -> None:
    graph = small_graph()
    task = build_ranking_task(graph, np.array([3, 5]), np.array([24, 24]))
    asked: list[tuple[int, int, int]] = []

    class Recorded:
        def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
            for start in range(0, 25, block):
                yield np.arange(start, min(start + block, 25)), start

        def score(self, start: int, stop: int, payload: Any) -> np.ndarray:
            asked.append((start, stop, payload))
            return np.zeros((stop - start, min(block, 25 - payload)), np.float32)

    assert scorer_latency(Recorded(), task) > 0
    per_request = -(-25 // block)
    assert len(asked) == (2 + 2) * per_request
    assert {stop - start for start, stop, _ in asked} == {1}
    assert [payload for _, _, payload in asked[:per_request]] == list(range(0, 25, block))
