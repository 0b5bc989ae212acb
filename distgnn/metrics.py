"""Ranking metrics of top-k lists over the whole catalogue.

n users, k list length, m items. Lists are int64 `[n, k]` of stable items, best first, -1 where a user has fewer unseen
ones. Relevant items ("targets") are an int64 CSR over the users, ascending within a row, never empty.

    recall@k   hits in the first k / |targets|
    ndcg@k     sum over hits of 1 / log2(position + 1), divided by that of min(k, |targets|) hits at the top
    hit@k      whether any of the first k is a hit
    mrr        1 / position of the first hit in the full ranking (0 if no target can be ranked); `mrr@k`: 0 below k
    coverage@k share of the catalogue that stands in somebody's list
    gini@k     Gini index of the items' exposure in the lists, over the whole catalogue (0: all alike, near 1: one item)

Slices, with K the longest list:

    tail_*      targets in the long tail only (`tail_items`), over the users who have such targets
    cold_item_* targets without a training edge only, over the users who have such targets
    cold_user_* all targets, over the users with at most COLD_USER_EDGES training edges
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distgnn.kernels.ranking import mark_hits

HEAD_SHARE = 0.8
COLD_USER_EDGES = 5


def hit_matrix(top_items: np.ndarray, target_indptr: np.ndarray, target_items: np.ndarray) -> np.ndarray:
    """Bool `[n, k]`: which list entries are targets."""
    hits = np.empty(top_items.shape, np.bool_)
    mark_hits(top_items, target_indptr, target_items, hits)
    return hits


def recall(hits: np.ndarray, n_targets: np.ndarray, k: int) -> np.ndarray:
    """Recall at k, float64 `[n]`, of hits bool `[n, >= k]` and n_targets int64 `[n]`."""
    return np.asarray(hits[:, :k].sum(axis=1) / n_targets)


def ndcg(hits: np.ndarray, n_targets: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain at k, float64 `[n]`; the ideal one is truncated at k."""
    gain = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gain)
    return np.asarray(hits[:, :k] @ gain[: hits.shape[1]] / ideal[np.minimum(n_targets, k) - 1])


def hit(hits: np.ndarray, k: int) -> np.ndarray:
    """1.0 where any of the first k entries is a hit, float64 `[n]`."""
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def reciprocal_rank(first_rank: np.ndarray) -> np.ndarray:
    """1 / first_rank, float64 `[n]`; 0 where first_rank (int64, from 1) is 0."""
    return np.divide(1.0, first_rank, out=np.zeros(len(first_rank)), where=first_rank > 0)


def first_hit(hits: np.ndarray) -> np.ndarray:
    """Position from 1 of the first hit of each row, int64 `[n]`; 0 without one."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def coverage(exposure: np.ndarray) -> float:
    """Share of items with any exposure (int64 `[m]`, times listed)."""
    return float(np.count_nonzero(exposure)) / len(exposure)


def gini(exposure: np.ndarray) -> float:
    """Gini index of exposure int64 `[m]`; 0 where nothing was listed."""
    total = exposure.sum()
    if total == 0:
        return 0.0
    m = len(exposure)
    rank = np.arange(1, m + 1, dtype=np.float64)
    return float(2.0 * (rank @ np.sort(exposure)) / (m * float(total)) - (m + 1) / m)


def tail_items(item_degree: np.ndarray, head_share: float = HEAD_SHARE) -> np.ndarray:
    """Bool `[m]`: items outside the head.

    The head is the shortest list of most popular items that holds `head_share` of the training edges (equal degrees by
    stable id).

    Args:
        item_degree: training edges of each item, int64 `[m]`.
        head_share: in (0, 1].
    """
    order = np.argsort(-item_degree, kind="stable")
    reached = np.cumsum(item_degree[order])
    n_head = int(np.searchsorted(reached, head_share * item_degree.sum())) + 1
    tail = np.ones(len(item_degree), np.bool_)
    tail[order[:n_head]] = False
    return tail


def restrict_targets(
    target_indptr: np.ndarray, target_items: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The CSR with only the targets for which keep bool `[m]` holds; rows may become empty."""
    kept = keep[target_items]
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    return before[target_indptr], target_items[kept]


Sums = dict[str, tuple[float, int]]


def metric_sums(
    top_items: np.ndarray,
    first_rank: np.ndarray | None,
    target_indptr: np.ndarray,
    target_items: np.ndarray,
    user_degree: np.ndarray,
    tail: np.ndarray,
    cold: np.ndarray,
    ks: Sequence[int],
) -> Sums:
    """Sum over the users, and number of users, of every per-user metric. Sums of disjoint users add up (`add_sums`).

    Args:
        top_items: int64 `[n, max(ks)]`.
        first_rank: position of each user's first target in the full ranking, int64 `[n]`, 0 without one; None: `mrr@K`
            takes the place of `mrr`.
        target_indptr: int64 `[n + 1]`.
        target_items: int64 `[target_indptr[-1]]`.
        user_degree: training edges of the users, int64 `[n]`.
        tail: bool `[m]`, items of the long tail.
        cold: bool `[m]`, items without a training edge.
        ks: cut-offs.
    """
    longest = max(ks)
    n = len(top_items)
    hits = hit_matrix(top_items, target_indptr, target_items)
    n_targets = np.diff(target_indptr)
    sums: Sums = {}
    for k in ks:
        sums[f"recall@{k}"] = (float(recall(hits, n_targets, k).sum()), n)
        sums[f"ndcg@{k}"] = (float(ndcg(hits, n_targets, k).sum()), n)
        sums[f"hit@{k}"] = (float(hit(hits, k).sum()), n)
    if first_rank is None:
        sums[f"mrr@{longest}"] = (float(reciprocal_rank(first_hit(hits)).sum()), n)
    else:
        sums["mrr"] = (float(reciprocal_rank(first_rank).sum()), n)
    for name, keep in (("tail", tail), ("cold_item", cold)):
        indptr, items = restrict_targets(target_indptr, target_items, keep)
        users = np.diff(indptr) > 0
        sums |= _slice_sums(name, hit_matrix(top_items, indptr, items), np.diff(indptr), users, longest)
    return sums | _slice_sums("cold_user", hits, n_targets, user_degree <= COLD_USER_EDGES, longest)


def _slice_sums(name: str, hits: np.ndarray, n_targets: np.ndarray, users: np.ndarray, k: int) -> Sums:
    n = int(users.sum())
    hits, n_targets = hits[users], n_targets[users]
    return {
        f"{name}_recall@{k}": (float(recall(hits, n_targets, k).sum()), n),
        f"{name}_ndcg@{k}": (float(ndcg(hits, n_targets, k).sum()), n),
    }


def add_sums(left: Sums, right: Sums) -> Sums:
    """Sums over the union of two disjoint sets of users."""
    return {name: (total + right[name][0], n + right[name][1]) for name, (total, n) in left.items()}


def means(sums: Sums) -> dict[str, float]:
    """Metrics of the sums; a slice that holds no user has no key."""
    return {name: total / n for name, (total, n) in sums.items() if n > 0}
