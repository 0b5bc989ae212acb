"""A user vector for a history that training never saw: one linear map, fitted on the training users.

For user u with seen items S(u), h_u is the mean of their vectors, and W minimises sum |W^T h_u - u|^2 over the users
that have seen any. LightGCN's user vector is a sum over the user's items too, but with weights by degree and the user's
own row: W is its best linear stand-in, and works for any encoder.
"""

from __future__ import annotations

import numpy as np

from distgnn.kernels.aggregation import neighbor_sum

RIDGE = 1e-6  # of the mean squared entry of the histories, so that directions without data stay small


def mean_of_items(item_vectors: np.ndarray, indptr: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean of the rows of each history.

    Args:
        item_vectors: float32 `[n_items, d]`. indptr: int64 `[m + 1]`. items: int32, stable.

    Returns:
        float32 `[m, d]`, zero for an empty history.
    """
    weight = (1.0 / np.maximum(np.diff(indptr), 1)).astype(np.float32)
    means = np.empty((len(weight), item_vectors.shape[1]), np.float32)
    neighbor_sum(item_vectors, np.ones(len(item_vectors), np.float32), weight, indptr, items, means)
    return means


class FoldIn:
    """Accumulates the normal equations over chunks of users.

    Args:
        item_vectors: float32 `[n_items, d]`.
    """

    def __init__(self, item_vectors: np.ndarray) -> None:
        self._item_vectors = item_vectors
        dim = item_vectors.shape[1]
        self._gram = np.zeros((dim, dim))
        self._moment = np.zeros((dim, dim))

    def add(self, indptr: np.ndarray, items: np.ndarray, user_vectors: np.ndarray) -> None:
        """Take a chunk of users.

        Args:
            indptr: int64 `[m + 1]`. items: int32, their seen items. user_vectors: float `[m, d]`.
        """
        history = mean_of_items(self._item_vectors, indptr, items).astype(np.float64)  # zero without items: no weight
        self._gram += history.T @ history
        self._moment += history.T @ user_vectors

    def solve(self) -> np.ndarray:
        """W, float32 `[d, d]`: a user's vector is about `W.T @ h`."""
        dim = len(self._gram)
        ridge = RIDGE * np.trace(self._gram) / dim or 1.0  # no history at all: W = 0
        return np.linalg.solve(self._gram + ridge * np.eye(dim), self._moment).astype(np.float32)
