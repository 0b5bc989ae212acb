"""ItemKNN: item-based nearest neighbours by cosine (Deshpande and Karypis 2004, "Item-based top-N recommendation").

sim(i, j) = common users / sqrt(users of i * users of j). A candidate's score is the sum of its similarities to those of
its K nearest neighbours that the user has.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from distgnn.baselines.base import add_item_rows, block_bounds, interaction_matrix
from distgnn.config import Config
from distgnn.kernels.ranking import top_k_of_rows

_FIT_BYTES = 256 << 20


class ItemKNN:
    """Truncated similarities: CSC float32 `[n_items, n_items]`, column j holds the neighbours of j."""

    def __init__(self, interactions: sparse.csr_matrix, similarity: sparse.csc_matrix) -> None:
        self.n_items = similarity.shape[1]
        self._interactions = interactions
        self._similarity = similarity

    @property
    def user_bytes(self) -> int:
        """None but the histories."""
        return 0

    def item_blocks(self, memory_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of items whose similarities fit."""
        return block_bounds(8 * np.diff(self._similarity.indptr).astype(np.int64), memory_bytes)

    def payload(self, start: int, stop: int) -> sparse.csr_matrix:
        """Similarities of all items to items start .. stop, CSR `[n_items, m]`."""
        return self._similarity[:, start:stop].tocsr()

    def score(self, users: np.ndarray, payload: sparse.csr_matrix) -> np.ndarray:
        """Sums of similarities, float32 `[c, m]`."""
        scores = np.zeros((len(users), payload.shape[1]), np.float32)
        add_item_rows(scores, self._interactions[users], payload)
        return scores


def fit(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, config: Config) -> ItemKNN:
    """Similarities of all pairs of items with a common user, the `neighbors` largest of each item kept."""
    interactions = interaction_matrix(user, item, n_users, n_items)
    return ItemKNN(interactions, nearest_items(interactions, config.baselines.neighbors))


def fit_bytes(n_users: int, n_items: int, n_edges: int, config: Config) -> int:
    """Peak bytes of `fit`: the matrix both ways, a range of pair counts with its copies, the similarities twice."""
    return 48 * n_edges + 3 * _FIT_BYTES + 16 * n_items * min(config.baselines.neighbors, n_items)


def nearest_items(interactions: sparse.csr_matrix, k: int) -> sparse.csc_matrix:
    """CSC float32 `[n_items, n_items]`: column j holds the k largest cosines of j to other items.

    Pairs are counted for a range of items at a time, in about 256 MiB.
    """
    n_items = interactions.shape[1]
    by_item = interactions.T.tocsr()
    degree = np.diff(by_item.indptr)
    inverse_norm = np.where(degree > 0, 1.0 / np.sqrt(np.maximum(degree, 1)), 0.0).astype(np.float32)
    user_degree = np.diff(interactions.indptr).astype(np.float64)
    # An item meets at most every item, and at most the edges of its users.
    pairs = np.minimum(by_item @ user_degree, n_items).astype(np.int64)
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, stop in block_bounds(12 * pairs, _FIT_BYTES):
        common = by_item[start:stop] @ interactions
        rows = np.repeat(np.arange(start, stop), np.diff(common.indptr))
        common.data *= inverse_norm[rows] * inverse_norm[common.indices]
        common.data[common.indices == rows] = 0.0  # an item is not its own neighbour
        common.eliminate_zeros()
        columns.append(_largest(common, k, start))
    counts = np.concatenate([np.diff(indptr) for indptr, _, _ in columns])
    return sparse.csc_matrix(
        (
            np.concatenate([values for _, _, values in columns]),
            np.concatenate([indices for _, indices, _ in columns]),
            np.concatenate([[0], np.cumsum(counts)]),
        ),
        shape=(n_items, n_items),
    )


def _largest(rows: sparse.csr_matrix, k: int, first_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows.sort_indices()
    n_kept = int(np.minimum(np.diff(rows.indptr), k).sum())
    indptr = np.empty(rows.shape[0] + 1, np.int64)
    indices = np.empty(n_kept, np.int32)
    values = np.empty(n_kept, np.float32)
    top_k_of_rows(rows.indptr, rows.indices, rows.data, first_row, k, indptr, indices, values)
    return indptr, indices, values
