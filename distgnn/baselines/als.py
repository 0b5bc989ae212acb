"""ALS: matrix factorisation of implicit feedback (Hu, Koren and Volinsky 2008), by the library `implicit`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from distgnn.baselines.base import block_bounds, interaction_matrix
from distgnn.config import Config

_SEED = 0


class ALS:
    """User and item factors, float32 `[n_users, f]` and `[n_items, f]`; scores are their inner products."""

    def __init__(self, user_factors: np.ndarray, item_factors: np.ndarray) -> None:
        self.n_items = len(item_factors)
        self._user_factors = user_factors
        self._item_factors = item_factors

    @property
    def user_bytes(self) -> int:
        """Of the users' factors."""
        return int(self._user_factors.nbytes)

    def item_blocks(self, memory_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of items whose factors fit."""
        return block_bounds(np.full(self.n_items, 4 * self._item_factors.shape[1]), memory_bytes)

    def payload(self, start: int, stop: int) -> np.ndarray:
        """Factors of the items, float32 `[m, f]`."""
        return self._item_factors[start:stop]

    def score(self, users: np.ndarray, payload: np.ndarray) -> np.ndarray:
        """Inner products, float32 `[c, m]`."""
        return self._user_factors[users] @ payload.T


def fit(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, config: Config) -> ALS:
    """Alternate from a fixed random start; an interaction has confidence `alpha` against 1 of everything else.

    `baselines.alpha` must be resolved: 0 means the runner's choice.
    """
    options = config.baselines
    interactions = interaction_matrix(user, item, n_users, n_items)
    # The library runs its own threads; a threaded BLAS under each of them would fight over the cores (and it warns).
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=options.factors,
            regularization=options.regularization,
            alpha=options.alpha,
            iterations=options.iterations,
            num_threads=config.cluster.threads_per_worker or len(os.sched_getaffinity(0)),
            random_state=_SEED,
        )
        model.fit(interactions, show_progress=False)
    return ALS(model.user_factors, model.item_factors)


def fit_bytes(n_users: int, n_items: int, n_edges: int, config: Config) -> int:
    """Peak bytes of `fit`: the matrix both ways, the factors."""
    return 48 * n_edges + 8 * config.baselines.factors * (n_users + n_items)
