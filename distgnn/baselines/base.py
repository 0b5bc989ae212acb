"""What the baselines share: the interaction matrix, and the bridge to the ranking evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from distgnn.kernels.ranking import add_sparse_rows


class BaselineModel(Protocol):
    """A fitted baseline."""

    n_items: int

    @property
    def user_bytes(self) -> int:
        """Bytes of what is kept for the users, their histories aside (every model needs those to leave them out)."""

    def item_blocks(self, memory_bytes: int) -> Iterator[tuple[int, int]]:
        """(start, stop) ranges of stable items whose payloads take at most about memory_bytes each."""

    def payload(self, start: int, stop: int) -> Any:
        """What scoring the items start .. stop needs."""

    def score(self, users: np.ndarray, payload: Any) -> np.ndarray:
        """Scores float32 `[c, m]` of stable users int64 `[c]`."""


class BaselineScorer:
    """A fitted baseline as `distgnn.training.evaluation.Scorer` of given stable users int64 `[n]`."""

    def __init__(self, model: BaselineModel, users: np.ndarray, memory_bytes: int) -> None:
        self._model = model
        self._users = users
        self._memory_bytes = memory_bytes

    def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
        """Blocks (stable items int64 `[m]`, payload)."""
        for start, stop in self._model.item_blocks(self._memory_bytes):
            yield np.arange(start, stop), self._model.payload(start, stop)

    def score(self, start: int, stop: int, payload: Any) -> np.ndarray:
        """Scores float32 `[stop - start, m]`."""
        return self._model.score(self._users[start:stop], payload)


def interaction_matrix(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int) -> sparse.csr_matrix:
    """Binary float32 CSR `[n_users, n_items]` of the edges' stable ids, integer `[E]`."""
    matrix = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(n_users, n_items))
    matrix.data[:] = 1.0  # an edge given twice counts once
    matrix.sort_indices()
    return matrix


def block_bounds(bytes_per_item: np.ndarray, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut the catalogue into ranges (start, stop) of at most memory_bytes, at least one item each.

    Args:
        bytes_per_item: payload bytes of every item, int64 `[n_items]`.
        memory_bytes: limit of a range.
    """
    reached = np.concatenate([[0], np.cumsum(bytes_per_item)])
    start = 0
    while start < len(bytes_per_item):
        stop = int(np.searchsorted(reached, reached[start] + memory_bytes, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def add_item_rows(scores: np.ndarray, rows: sparse.csr_matrix, item_rows: sparse.csr_matrix) -> None:
    """Add rows (binary, `[c, n_items]`) @ item_rows `[n_items, m]` to scores float32 `[c, m]`."""
    add_sparse_rows(item_rows.indptr, item_rows.indices, item_rows.data, rows.indptr, rows.indices, scores)


def bytes_of(payload: Any) -> int:
    """Bytes of the arrays and sparse matrices in a payload."""
    if isinstance(payload, tuple):
        return sum(bytes_of(part) for part in payload)
    if sparse.issparse(payload):
        return int(payload.data.nbytes + payload.indices.nbytes + payload.indptr.nbytes)
    return int(payload.nbytes)


def model_bytes(model: BaselineModel, memory_bytes: int) -> int:
    """Bytes that must be held to answer requests: the users' part, and the payloads of all items."""
    blocks = model.item_blocks(memory_bytes)
    return model.user_bytes + sum(bytes_of(model.payload(start, stop)) for start, stop in blocks)
