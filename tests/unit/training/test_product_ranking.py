"""Ranking by inner products, tile by tile, gives what given scores give, whatever is cut and shared out how."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.graph import Topology
from distgnn.training import product_ranking
from distgnn.training.evaluation import RankingResult, RankingTask, build_ranking_task, evaluate_ranking
from distgnn.training.product_ranking import InnerProducts
from distgnn.types import UserError
from tests import naive_metrics

N_USERS, N_ITEMS, DIM, MEMORY = 50, 70, 3, 1 << 22


class VectorScorer:
    """Inner products of vectors, in blocks of `width` items."""

    def __init__(self, users: np.ndarray, items: np.ndarray, task: RankingTask, width: int = N_ITEMS) -> None:
        self.users, self.items, self.width = users[task.users], items, width
        self.asked = 0

    def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
        self.asked += 1
        for start in range(0, len(self.items), self.width):
            stable = np.arange(start, min(start + self.width, len(self.items)))
            yield stable, InnerProducts(self.users, self.items[stable])

    def score(self, start: int, stop: int, payload: Any) -> np.ndarray:
        raise AssertionError("inner products are not asked for")


def whole_numbers(rng: np.random.Generator, n: int, levels: int, dtype: type) -> np.ndarray:
    """Vectors whose products are exact in any order, and often equal."""
    return (rng.integers(0, levels, (n, DIM)) - levels // 2).astype(dtype)


def problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, RankingTask]:
    drawn = rng.random((N_USERS, N_ITEMS))
    train, test = drawn < 0.15, drawn > 0.93
    train[0] = True  # nothing is left for this one but a target or two
    train[0, :2] = False
    test[0] = ~train[0]
    topology = Topology.from_edges(*np.nonzero(train), N_USERS, N_ITEMS)
    return train, test, build_ranking_task(topology, *np.nonzero(test))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_ranking, "_CHUNK_USERS", 7)
    monkeypatch.setattr(product_ranking, "_TILE_ITEMS", 19)


def evaluate(scorer: VectorScorer, task: RankingTask, threads: int = 1, **options: Any) -> RankingResult:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return evaluate_ranking(scorer, task, **({"ks": (3, 12), "memory_bytes": MEMORY} | options))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [1, 2, 50])  # 1: all scores are equal
@pytest.mark.parametrize("width", [N_ITEMS, 30])
def test_metrics_equal_a_full_sort(dtype: type, levels: int, width: int) -> None:
    rng = np.random.default_rng(levels)
    train, test, task = problem(rng)
    users, items = whole_numbers(rng, N_USERS, levels, dtype), whole_numbers(rng, N_ITEMS, levels, dtype)
    rows = [[set(np.flatnonzero(matrix[u]).tolist()) for u in task.users] for matrix in (train, test)]
    degree = train.sum(axis=1)[task.users].tolist()
    scores = (users @ items.T)[task.users]
    expected = naive_metrics.evaluate(scores, task.users.tolist(), *rows, train.sum(axis=0).tolist(), degree, (3, 12))
    scorer = VectorScorer(users, items, task, width)
    assert evaluate(scorer, task).metrics == pytest.approx(expected, abs=1e-12)
    if levels == 50:
        assert scorer.asked == (1 if width == N_ITEMS else 2)  # the ranks of the whole catalogue take no second pass


@given(seed=st.integers(0, 2**32), threads=st.integers(1, 3), chunk=st.integers(1, 60), tile=st.integers(1, 80))
@settings(max_examples=25, deadline=None)
def test_no_cut_and_no_thread_changes_exact_scores(seed: int, threads: int, chunk: int, tile: int) -> None:
    rng = np.random.default_rng(seed)
    _, _, task = problem(rng)
    users, items = whole_numbers(rng, N_USERS, 9, np.float32), whole_numbers(rng, N_ITEMS, 9, np.float32)
    whole = evaluate(VectorScorer(users, items, task), task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_ranking, "_CHUNK_USERS", chunk)
        patch.setattr(product_ranking, "_TILE_ITEMS", tile)
        cut = evaluate(VectorScorer(users, items, task), task, threads)
    assert (cut.top_items == whole.top_items).all()
    assert cut.metrics == whole.metrics


@pytest.mark.usefixtures("small_tiles")
def test_threads_do_not_change_a_bit() -> None:
    """Scores that no other order of summing gives: a pair's product is made in the same tile by any thread."""
    rng = np.random.default_rng(3)
    _, _, task = problem(rng)
    users, items = (rng.standard_normal((n, 40)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    items[1::2] = items[::2] * np.float32(1 + 1e-7)  # neighbours differ in the last bit, or not at all
    results = [evaluate(VectorScorer(users, items, task), task, threads) for threads in (1, 2, 4)]
    for other in results[1:]:
        assert (other.top_items == results[0].top_items).all()
        assert other.metrics == results[0].metrics


def test_tiles_stay_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    _, _, task = problem(rng)
    users, items = whole_numbers(rng, N_USERS, 50, np.float32), whole_numbers(rng, N_ITEMS, 50, np.float32)
    state = len(task.users) * (16 * 12 + 50) + 13 * N_ITEMS
    whole = evaluate(VectorScorer(users, items, task), task)
    made: list[int] = []
    by: set[str] = set()
    product = np.matmul

    def watched(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
        made.append(out.nbytes)
        by.add(threading.current_thread().name)
        return product(left, right, out=out)

    monkeypatch.setattr(np, "matmul", watched)
    for room in (16 * N_ITEMS, 5000):
        made.clear()
        by.clear()
        result = evaluate(VectorScorer(users, items, task), task, 2, memory_bytes=state + room)
        assert max(made) <= room / 2
        assert len(by) == 1  # there is no room for the tile of another thread
        assert (result.top_items == whole.top_items).all()


@pytest.mark.usefixtures("small_tiles")
def test_scores_that_are_no_numbers_are_counted() -> None:
    rng = np.random.default_rng(5)
    _, _, task = problem(rng)
    users, items = np.ones((N_USERS, DIM), np.float32), np.ones((N_ITEMS, DIM), np.float32)
    users[task.users[1]] = 1e30
    items[9] = -1e30  # seen or not: overflow is counted either way
    items[11, 0] = np.nan
    n = len(task.users)
    with pytest.raises(UserError, match=f" {n + 1} scores are not finite"):
        evaluate(VectorScorer(users, items, task), task, exact_mrr=False)


def test_a_scorers_mistakes_are_named() -> None:
    _, _, task = problem(np.random.default_rng(6))
    users, items = np.ones((N_USERS, DIM), np.float32), np.ones((N_ITEMS, DIM), np.float32)

    class Disordered(VectorScorer):
        def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
            yield np.arange(N_ITEMS)[::-1], InnerProducts(self.users, self.items)

    with pytest.raises(ValueError, match="must ascend"):
        evaluate(Disordered(users, items, task), task)
    scorer = VectorScorer(users, items, task)
    scorer.users = scorer.users[1:]
    with pytest.raises(ValueError, match="vectors .* users"):
        evaluate(scorer, task)
