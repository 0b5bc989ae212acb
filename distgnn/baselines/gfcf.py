"""GF-CF, a closed-form graph filter (Shen et al. 2021, "How Powerful is Graph Convolution for Recommendation?").

With N = Du^-1/2 R Di^-1/2 the scores are R (N^T N + w Di^-1/2 V V^T Di^1/2): a linear filter over neighbouring items
and an ideal low-pass filter of the leading right singular vectors V of N, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from distgnn.baselines.base import add_item_rows, block_bounds, interaction_matrix
from distgnn.config import Config

Payload = tuple[sparse.csr_matrix, np.ndarray]

_SEED = 0  # of the Lanczos start vector: it moves the singular vectors by their tolerance only
_TOLERANCE = 1e-4  # relative, of the singular values; the scores are float32


class GFCF:
    """Both filters in factored form.

    Args:
        interactions: R, binary CSR `[n_users, n_items]`.
        normalized: N, CSR float32 `[n_users, n_items]`.
        user_factors: w R Di^-1/2 V, float32 `[n_users, r]`.
        item_factors: Di^1/2 V, float32 `[n_items, r]`.
    """

    def __init__(
        self,
        interactions: sparse.csr_matrix,
        normalized: sparse.csr_matrix,
        user_factors: np.ndarray,
        item_factors: np.ndarray,
    ) -> None:
        self.n_items = interactions.shape[1]
        self._interactions = interactions
        self._by_item = normalized.T.tocsr()
        self._user_factors = user_factors
        self._item_factors = item_factors

    @property
    def user_bytes(self) -> int:
        """Of the users' factors."""
        return int(self._user_factors.nbytes)

    def item_blocks(self, memory_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of items whose rows of the linear filter fit."""
        edges_of_users = np.diff(self._interactions.indptr).astype(np.float64)
        pairs = np.minimum(self._interactions.T @ edges_of_users, self.n_items)
        return block_bounds((8 * pairs + 4 * self._item_factors.shape[1]).astype(np.int64), memory_bytes)

    def payload(self, start: int, stop: int) -> Payload:
        """(N^T N)[:, start:stop] and the items' factors `[m, r]`."""
        return self._by_item @ self._by_item[start:stop].T.tocsr(), self._item_factors[start:stop]

    def score(self, users: np.ndarray, payload: Payload) -> np.ndarray:
        """Sum of both filters, float32 `[c, m]`."""
        linear, item_factors = payload
        scores = self._user_factors[users] @ item_factors.T
        add_item_rows(scores, self._interactions[users], linear)
        return scores


def fit(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, config: Config) -> GFCF:
    """Normalise the matrix and take its leading singular vectors (as many as there are, on a small one)."""
    interactions = interaction_matrix(user, item, n_users, n_items)
    user_degree = np.diff(interactions.indptr).astype(np.float64)
    item_degree = np.bincount(interactions.indices, minlength=n_items).astype(np.float64)
    item_scale = _inverse_sqrt(item_degree)
    normalized = sparse.diags(_inverse_sqrt(user_degree)) @ interactions @ sparse.diags(item_scale)
    vectors = right_singular_vectors(normalized, config.baselines.singular_vectors)
    user_factors = interactions @ (item_scale[:, None] * vectors)
    return GFCF(
        interactions,
        normalized.astype(np.float32).tocsr(),
        (config.baselines.low_pass_weight * user_factors).astype(np.float32),
        (np.sqrt(item_degree)[:, None] * vectors).astype(np.float32),
    )


def fit_bytes(n_users: int, n_items: int, n_edges: int, config: Config) -> int:
    """Peak bytes of `fit`: the matrix and its normalised copies, the Lanczos basis, the factors in both precisions."""
    k = config.baselines.singular_vectors
    return 80 * n_edges + 4 * (2 * k + 1) * min(n_users, n_items) + 24 * k * (n_users + n_items)


def right_singular_vectors(matrix: sparse.csr_matrix, k: int) -> np.ndarray:
    """The k leading right singular vectors, float `[n_items, <= k]`; those of singular value 0 are left out."""
    if min(matrix.shape) <= max(2 * k, 64):
        _, values, rows = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.random.default_rng(_SEED).standard_normal(min(matrix.shape)).astype(np.float32)
        _, values, rows = svds(matrix.astype(np.float32), k=k, v0=start, tol=_TOLERANCE, solver="arpack")
    order = np.argsort(-values)[:k]
    return rows[order[values[order] > 1e-6]].T


def _inverse_sqrt(degree: np.ndarray) -> np.ndarray:
    return np.where(degree > 0, 1.0 / np.sqrt(np.maximum(degree, 1.0)), 0.0)
