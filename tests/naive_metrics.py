"""Slow, obvious oracles of ranking and metrics: plain Python over whole score matrices."""

from __future__ import annotations

import math

import numpy as np

MASK = 2**64 - 1


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def tie_key(user: int, item: int) -> int:
    golden = 0x9E3779B97F4A7C15
    key = _mix((7 + golden) & MASK)  # 7: the stream of ties
    key = _mix(((key ^ user) + golden) & MASK)
    return _mix(((key ^ item) + golden) & MASK)


def ranking(scores, user, seen):
    """All unseen items of one user, best first. scores `[n_items]`, seen: set."""
    items = [i for i in range(len(scores)) if i not in seen]
    return sorted(items, key=lambda i: (-float(scores[i]), tie_key(user, i)))


def tail(item_degree, share=0.8):
    order = sorted(range(len(item_degree)), key=lambda i: (-item_degree[i], i))
    head, reached = set(), 0
    for i in order:
        head.add(i)
        reached += item_degree[i]
        if reached >= share * sum(item_degree):
            break
    return set(range(len(item_degree))) - head


def gini(exposure):
    """Mean absolute difference over twice the mean."""
    n = len(exposure)
    mean = sum(exposure) / n
    return sum(abs(a - b) for a in exposure for b in exposure) / (2 * n * n * mean)


def evaluate(scores, users, seen, targets, item_degree, user_degree, ks):
    """Metrics of scores `[n, n_items]` of stable users; seen and targets hold a set, user_degree a number a user."""
    longest = max(ks)
    values: dict[str, list[float]] = {}
    exposure = [0] * scores.shape[1]
    tail_set = tail(item_degree)
    cold_items = {i for i, d in enumerate(item_degree) if d == 0}

    def add(name, value):
        values.setdefault(name, []).append(value)

    def add_recall_ndcg(prefix, order, wanted, k):
        hits = [i in wanted for i in order[:k]]
        add(f"{prefix}recall@{k}", sum(hits) / len(wanted))
        dcg = sum(1 / math.log2(p + 2) for p, is_hit in enumerate(hits) if is_hit)
        add(f"{prefix}ndcg@{k}", dcg / sum(1 / math.log2(p + 2) for p in range(min(k, len(wanted)))))

    for r, user in enumerate(users):
        order = ranking(scores[r], user, seen[r])
        wanted = targets[r]
        for k in ks:
            add_recall_ndcg("", order, wanted, k)
            add(f"hit@{k}", float(any(i in wanted for i in order[:k])))
        ranks = [p + 1 for p, i in enumerate(order) if i in wanted]
        add("mrr", 1 / ranks[0] if ranks else 0.0)
        for i in order[:longest]:
            exposure[i] += 1
        for prefix, subset in (("tail_", tail_set), ("cold_item_", cold_items)):
            if wanted & subset:
                add_recall_ndcg(prefix, order, wanted & subset, longest)
        if user_degree[r] <= 5:
            add_recall_ndcg("cold_user_", order, wanted, longest)
    result = {name: float(np.mean(v)) for name, v in values.items()}
    result[f"coverage@{longest}"] = sum(e > 0 for e in exposure) / len(exposure)
    result[f"gini@{longest}"] = gini(exposure)
    return result
