"""How long one request takes: the top-k of one user over the whole catalogue, on one thread."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from distgnn.kernels.ranking import mask_seen, update_top_k
from distgnn.timing import median_latency
from distgnn.training.evaluation import RankingTask, Scorer


def scorer_latency(scorer: Scorer, task: RankingTask, k: int = 20) -> float:
    """Median milliseconds of scoring, masking and ranking every item for one user of the task.

    A payload that holds the whole catalogue is kept, as a server would; of several blocks each request makes its own.
    """
    blocks = scorer.item_blocks()
    first = next(blocks)
    whole = len(first[0]) == task.n_items
    column_of = np.full(task.n_items, -1, np.int32)
    column_of[first[0]] = np.arange(len(first[0]), dtype=np.int32)

    def request(i: int) -> np.ndarray:
        score, item = np.full((1, k), -np.inf), np.full((1, k), -1, np.int64)
        user = task.users[i : i + 1]
        for items, payload in [first] if whole else scorer.item_blocks():
            if not whole:
                column_of.fill(-1)
                column_of[items] = np.arange(len(items), dtype=np.int32)
            scores = np.require(scorer.score(i, i + 1, payload), requirements=["C", "W"])
            mask_seen(scores, column_of, task.seen_indptr, task.seen_items, i)
            update_top_k(scores, np.ascontiguousarray(items, np.int64), user, 0, score, item)
        return item

    with threadpool_limits(1):
        return median_latency(request, len(task.users))
