"""What one request costs, by the path that serves it."""

from __future__ import annotations

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

from distgnn.export.reader import Export
from distgnn.export.table import Table
from distgnn.recommender.recommender import Recommender
from distgnn.timing import median_latency


def request_latency(export: Export, users: Table, items: Table, k: int = 20) -> float:
    """Median milliseconds of the top-k of one user on one thread, seen items left out.

    Args:
        export: for the seen items and keys. users, items: the vectors to serve, `[n_users, d]` and `[n_items, d]`.
        k: at most the number of items is taken.
    """
    recommender = Recommender(dataclasses.replace(export, users=users, items=items), threads=1)
    k = min(k, len(items))
    with threadpool_limits(1):
        return median_latency(lambda user: recommender.top_k(np.array([user]), k), len(users))
