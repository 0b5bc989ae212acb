"""The grown graph is like the one it grew from."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import fractal_expansion


def test_a_fractal_expansion_keeps_who_has_what_and_grows_as_told() -> None:
    rng = np.random.default_rng(3)
    n_users, n_items = 200, 150
    key = np.unique((200 * rng.random(4000) ** 2).astype(int) * n_items + (150 * rng.random(4000) ** 3).astype(int))
    user, item = key // n_items, key % n_items
    grown_user, grown_item = fractal_expansion(user, item, n_users, n_items, (4, 3), 0.5, seed=1)
    assert abs(len(grown_user) / (12 * len(user)) - 0.5) < 0.1
    pairs = set(zip(grown_user.tolist(), grown_item.tolist(), strict=True))
    assert len(pairs) == len(grown_user)
    source = set(zip(user.tolist(), item.tolist(), strict=True))
    assert {(u % n_users, i % n_items) for u, i in pairs} <= source
    assert max(grown_user) // n_users == 3 and max(grown_item) // n_items == 2
    # Copies differ in how much they keep: those of the most active users and popular items keep all.
    kept = np.bincount(grown_user // n_users * 3 + grown_item // n_items, minlength=12) / len(user)
    assert kept[0] == 1.0 and kept.min() < 0.5
    again = fractal_expansion(user, item, n_users, n_items, (4, 3), 0.5, seed=1)
    assert (again[0] == grown_user).all()
