"""TopPop: every user gets the most popular items not seen yet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distgnn.config import Config


class TopPop:
    """Scores are the items' training edges, float32 `[n_items]`."""

    def __init__(self, popularity: np.ndarray) -> None:
        self.n_items = len(popularity)
        self._popularity = popularity

    @property
    def user_bytes(self) -> int:
        """None: the same for everybody."""
        return 0

    def item_blocks(self, memory_bytes: int) -> Iterator[tuple[int, int]]:
        """One block: a score an item is all there is."""
        yield 0, self.n_items

    def payload(self, start: int, stop: int) -> np.ndarray:
        """Popularity of the items, float32 `[m]`."""
        return self._popularity[start:stop]

    def score(self, users: np.ndarray, payload: np.ndarray) -> np.ndarray:
        """The same row for everybody, float32 `[c, m]`."""
        return np.tile(payload, (len(users), 1))


def fit(user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, config: Config) -> TopPop:
    """Count the edges of every item. user, item: stable ids, integer `[E]`."""
    return TopPop(np.bincount(item, minlength=n_items).astype(np.float32))


def fit_bytes(n_users: int, n_items: int, n_edges: int, config: Config) -> int:
    """Peak bytes of `fit`: counts of the items."""
    return 12 * n_items
