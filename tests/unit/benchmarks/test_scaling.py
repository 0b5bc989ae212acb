"""What a step's work is counted as, and the bound that follows, against hand-made cases and slow counting."""

from __future__ import annotations

import pytest

from benchmarks.scaling_bound import UNITS, Work, exchange_seconds, least_seconds, unit_seconds, work_of
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.types import MiniBatch
from tests.unit.graphs import partitioned, random_edges

B = 64
GRAPH, BOOK = partitioned(*random_edges(3, 60, 70, 900), 60, 70, 2)


def work(edges: int = 0, rows: int = 0, updated: int = 0, scores: int = 0) -> Work:
    return Work(edges=edges, rows=rows, remote=0, updated=updated, merged=0, scores=scores)


def batches(negatives: str, workers: int) -> list[MiniBatch]:
    sampler = NeighborSampler(GRAPH, (3, 2), 5, negatives=negatives, num_negatives=2)
    bounds = BOOK.worker_bounds(workers)
    orders = [SeedOrder(GRAPH, B, 5, bounds, rank) for rank in range(workers)]
    return [sampler.sample(order.seeds(0), 0) for order in orders]


@pytest.mark.parametrize("negatives", ["in_batch", "uniform"])
def test_work_is_what_a_slow_count_gives(negatives: str) -> None:
    bounds = BOOK.worker_bounds(2)
    found = batches(negatives, 2)
    counted = work_of(found, bounds)
    wanted = [set(batch.nodes.tolist()) for batch in found]
    for rank, (batch, of_worker) in enumerate(zip(found, counted, strict=True)):
        own = set(range(bounds[rank], bounds[rank + 1]))
        assert of_worker.edges == sum(len(block.indices) for block in batch.blocks)
        assert of_worker.rows == len(wanted[rank])
        assert of_worker.remote == len(wanted[rank] - own)
        assert of_worker.updated == len((wanted[0] | wanted[1]) & own)
        assert of_worker.merged == len(wanted[1 - rank] & own)
        assert of_worker.scores == len(batch.share) * (B if negatives == "in_batch" else 3)


def test_parts_of_a_batch_touch_what_the_whole_touches_and_fetch_more() -> None:
    (whole,) = work_of(batches("in_batch", 1), BOOK.worker_bounds(1))
    parts = work_of(batches("in_batch", 2), BOOK.worker_bounds(2))
    assert whole.remote == whole.merged == 0
    assert whole.updated == whole.rows
    assert sum(part.updated for part in parts) == whole.updated
    assert sum(part.scores for part in parts) == whole.scores
    assert sum(part.rows for part in parts) > whole.rows
    assert sum(part.edges for part in parts) > whole.edges
    assert sum(part.remote for part in parts) == sum(part.merged for part in parts) > 0


def test_costs_times_work_is_the_time_they_come_from() -> None:
    done = [work(10, 5, 5, 100), work(30, 7, 6, 100)]
    seconds = {stage: 1.0 + k for k, stage in enumerate(UNITS)}
    costs = unit_seconds(seconds, done)
    assert costs["sampling"] == pytest.approx(1.0 / 40)
    assert costs["fetch"] == pytest.approx(2.0 / 12)
    assert least_seconds(costs, [[w] for w in done]) == pytest.approx(sum(seconds.values()))


def test_halves_without_repetition_take_half_and_repetition_takes_more() -> None:
    costs = dict.fromkeys(UNITS, 0.1)
    whole = [[work(10, 10, 10, 10)]] * 3
    assert least_seconds(costs, whole) / least_seconds(costs, [[work(5, 5, 5, 5)] * 2] * 3) == pytest.approx(2)
    assert least_seconds(costs, [[work(6, 8, 5, 5)] * 2] * 3) > least_seconds(costs, whole) / 2


def test_a_step_lasts_as_long_as_its_slowest_worker_trains_and_only_sampling_runs_ahead() -> None:
    costs = {**dict.fromkeys(UNITS, 0.0), "sampling": 1.0, "fetch": 1.0, "optimizer": 1.0}
    assert least_seconds(costs, [[work(rows=3), work(rows=1)], [work(rows=1), work(rows=3)]]) == 6
    assert least_seconds(costs, [[work(edges=3), work(edges=1)], [work(edges=1), work(edges=3)]]) == 4
    assert least_seconds(costs, [[work(edges=3, rows=1), work()], [work(edges=2), work(rows=1)]]) == 6
    assert least_seconds(costs, [[work(rows=1)] * 2], exchange=0.25) == 1.25


def test_rows_are_moved_after_the_meeting_and_may_make_up_for_the_next_step() -> None:
    costs = {**dict.fromkeys(UNITS, 0.0), "fetch": 1.0, "optimizer": 1.0}
    made_up = [[work(rows=2, updated=3), work(rows=2, updated=1)], [work(rows=1), work(rows=3)]]
    assert least_seconds(costs, made_up) == 2 + 4
    not_made_up = [[work(rows=3, updated=1), work(rows=1, updated=3)], [work(rows=2), work(rows=2)]]
    assert least_seconds(costs, not_made_up) == 3 + 5


def test_what_is_exchanged_takes_the_time_of_its_bandwidth() -> None:
    n_bytes = {"topology": 100, "rows": 1000, "gradients": 500, "gathered": 20}
    assert exchange_seconds(n_bytes, 10, 100, in_memory=False) == pytest.approx(162)
    assert exchange_seconds(n_bytes, 10, 100, in_memory=True) == pytest.approx(10 + 2 * 5.2)
